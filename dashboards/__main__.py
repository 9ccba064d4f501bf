"""`python -m dashboards` builds what is outdated and says what that was."""

from dashboards import making

for path in making.write():
    print(path.relative_to(making.ROOT))

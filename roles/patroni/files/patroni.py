#!/usr/bin/python3 -I
"""Run Patroni so that it understands why etcd refuses something.

An etcd whose gateway to JSON is of version 2, as Debian's, says why in `message`, and Patroni before 4.1 looks for `error`. It then
takes "user name is empty" for an error that it does not know and never logs in again, once two of its threads that logged in at the
same time have left it without a token. A primary goes on so as long as all members answer it, and is demoted when the next one dies.
Patroni 4.1 reads both (patroni/dcs/etcd3.py, _raise_for_data); with that one this changes nothing.
"""

from __future__ import annotations

from typing import Any


def main() -> None:
    """Run Patroni, whose arguments are this program's."""
    # Not above: the process that starts PostgreSQL reads this file as well, and needs none of it.
    from patroni import __main__ as patroni  # noqa: PLC0415
    from patroni.dcs import etcd3  # noqa: PLC0415

    raise_for_data = etcd3._raise_for_data

    def raise_for_answer(data: Any, status_code: int | None = None) -> Exception:  # noqa: ANN401  (text, or JSON of any kind)
        if isinstance(data, dict) and "message" in data:
            data = {"error": data["message"], **data}
        error: Exception = raise_for_data(data, status_code)
        return error

    etcd3._raise_for_data = raise_for_answer
    patroni.main()


if __name__ == "__main__":
    main()

"""The pages, as a browser gets them; and the storefront, in Chromium behind HAProxy, with Keycloak's own log-in page."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from servers import PASSWORD, Process, listens, wait_until
from service import Api, Platform, Products, Workers

EDGE_PORT = 9443
FILES = [f"/static/{path.name}" for path in (Path(__file__).parents[1] / "src/orders/web/site").iterdir()]
# Of a page that a screen reader or a keyboard meets: what has no name, and what is named twice.
NAMELESS = """() => [...document.querySelectorAll('input, button, a[href], select, textarea, section, nav')]
  .filter(e => e.checkVisibility())
  .filter(e => !((e.labels && e.labels.length) || e.getAttribute('aria-label') || e.getAttribute('aria-labelledby')
                 || e.textContent.trim()))
  .map(e => e.outerHTML)"""
TWICE = """() => { const ids = [...document.querySelectorAll('[id]')].map(e => e.id);
  return ids.filter((id, index) => ids.indexOf(id) !== index) }"""
# The least contrast of any text with what is behind it, by WCAG's formula.
CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    for (; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor); if (c[3] === 255) return c; }
    return rgba('white');
  };
  let least = [21, ''];
  for (const e of document.querySelectorAll('body *')) {
    if (!e.checkVisibility() || ![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    const [a, b] = [luminance(rgba(getComputedStyle(e).color)), luminance(behind(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < least[0]) least = [ratio, e.outerHTML.slice(0, 200)];
  }
  return least;
}"""


WORKBENCH = {
    "Desk lamp": 3900,
    "Oak stool": 12900,
    "Bench vice": 8450,
    "Block plane": 6100,
    "Marking gauge": 2750,
    "Dovetail saw": 4990,
    "Try square": 1890,
    "Brass mallet": 3400,
    "Linen apron": 5600,
}


class Edge(Process):
    """HAProxy, as the edge has it: TLS, Keycloak under its path, and the service."""

    def __init__(self, platform: Platform, api: Api) -> None:
        super().__init__(platform.folder, "edge")
        certificates = platform.certificates
        pem = platform.folder / "edge.pem"
        pem.write_text(certificates.certificate.read_text() + certificates.key.read_text())
        configuration = platform.folder / "edge.cfg"
        configuration.write_text(
            "defaults\n mode http\n timeout connect 1s\n timeout client 30s\n timeout server 30s\n"
            f"frontend users\n bind 127.0.0.1:{EDGE_PORT} ssl crt {pem} alpn h2,http/1.1\n"
            " http-request set-header X-Forwarded-Proto https\n"
            " use_backend identity if { path -m beg /auth/ }\n default_backend orders\n"
            f"backend identity\n server one 127.0.0.1:{platform.keycloak.tls_port} ssl verify required"
            f" ca-file {certificates.ca} verifyhost localhost\n"
            f"backend orders\n server one {api.url.removeprefix('http://')}\n"
        )
        self.spawn(["/usr/sbin/haproxy", "-f", str(configuration)])
        wait_until(lambda: listens(EDGE_PORT), "the edge")


@pytest.fixture(scope="module")
def browser(platform: Platform, api: Api) -> Iterator[Browser]:
    """Have Chromium behind the edge."""
    edge = Edge(platform, api)
    os.environ["HOME"] = "/tmp"  # noqa: S108  (where Chromium may write)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium",
            args=[
                *("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
                f"--host-resolver-rules=MAP identity.test:443 127.0.0.1:{EDGE_PORT}",
            ],
        )
        yield browser
        browser.close()
    edge.stop()


@pytest.fixture
def page(platform: Platform, browser: Browser) -> Iterator[Page]:
    """Have a window in which nobody has logged in, and in which nothing goes wrong unseen."""
    context = browser.new_context(
        base_url=platform.keycloak.origin,
        ignore_https_errors=True,  # the tests' authority
        viewport={"width": 1280, "height": 860},
        color_scheme="light",
    )
    page = context.new_page()
    page.set_default_timeout(20_000)
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "console",
        lambda message: complaints.append(message.text) if "Content Security Policy" in message.text else None,
    )
    yield page
    context.close()
    assert not complaints


def log_in(page: Page, person: str) -> None:
    """Fill in Keycloak's page."""
    page.get_by_label("Username or email").fill(person)
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_role("button", name="Sign In").click()


@pytest.mark.parametrize("path", ["/", "/docs", *FILES])
def test_a_page_is_known_again_by_its_tag_and_may_do_nothing_but_ask_us(api: Api, path: str) -> None:
    with httpx.Client(base_url=api.url) as client:
        answer = client.get(path)
        assert answer.status_code == 200
        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert (answer.headers["x-content-type-options"], answer.headers["referrer-policy"]) == (
            "nosniff",
            "same-origin",
        )
        assert re.match(r"no-cache$|public, max-age=60$", answer.headers["cache-control"])
        again = client.get(path, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", answer.headers["etag"])
        assert client.get(path, headers={"If-None-Match": '"else"'}).status_code == 200


@pytest.mark.parametrize("name", ["nothing", "..%2Fpages.py", "%2e%2e", "index.html%00"])
def test_nothing_but_the_pages_files_is_served(api: Api, name: str) -> None:
    answer = httpx.get(f"{api.url}/static/{name}")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


def test_a_customer_browses_logs_in_orders_sees_it_settle_and_logs_out(
    page: Page, products: Products, worker: Workers
) -> None:
    lamp = products.create("LAMP", name=f"Brass lamp {products.prefix}", price_cents=3900)
    products.stock("LAMP", 5)
    page.goto("/")
    expect(page.get_by_role("heading", name="Products")).to_be_visible()
    page.get_by_label("Search the products").fill(products.prefix.strip("-"))
    card = page.locator(".card", has_text=lamp)
    expect(card).to_be_visible()
    expect(card.locator(".price")).to_have_text("€39.00")
    card.get_by_role("button").click()
    page.get_by_label(re.compile("^Brass lamp")).fill("2")
    page.get_by_label(re.compile("^Brass lamp")).press("Enter")
    expect(page.locator("#total")).to_contain_text("€78.00")
    page.get_by_role("link", name="Log in to order").click()
    log_in(page, "bert")
    expect(page.locator("#who")).to_have_text("bert@example.com")
    assert page.url.startswith("https://identity.test/?q=")
    expect(page.locator("#total")).to_contain_text("€78.00")  # the basket has come along
    page.get_by_role("button", name="Place the order").click()
    expect(page.get_by_role("heading", name="Your order")).to_be_visible()
    expect(page.locator("#order-section")).to_have_attribute("data-state", "settled")
    expect(page.locator("#order-state")).to_contain_text("Settled")
    expect(page.locator("#order-state")).to_contain_text("€78.00")
    expect(page.locator("#history li").first).to_contain_text("€78.00")
    (cookie,) = (c for c in page.context.cookies() if c["name"].startswith("__Host-"))
    assert (cookie["name"], cookie["secure"], cookie["httpOnly"]) == ("__Host-session", True, True)
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("link", name="Log in", exact=True)).to_be_visible()
    assert not [c for c in page.context.cookies() if c["name"] == "__Host-session"]
    page.get_by_role("link", name="Log in", exact=True).click()
    expect(page.get_by_label("Password", exact=True)).to_be_visible()  # Keycloak has forgotten the browser too


def test_the_description_of_the_interface_works_without_the_internet(page: Page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto("/login?next=/docs")
    log_in(page, "anna")
    page.locator("#operations-Access-WhoAmI").get_by_role("button").first.click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    expect(page.locator("#operations-Access-WhoAmI .live-responses-table")).to_contain_text("anna@example.com")
    assert not [url for url in asked if not url.startswith(("https://identity.test/", "data:", "blob:"))]


def test_an_order_that_is_refused_says_why(page: Page, products: Products, worker: Workers) -> None:
    products.create("RARE", name=f"Rare thing {products.prefix}")
    page.goto(f"/login?next=/%3Fq%3D{products.prefix.strip('-')}")
    log_in(page, "anna")
    page.locator(".card", has_text="Rare thing").get_by_role("button").click()
    page.get_by_role("button", name="Place the order").click()
    expect(page.locator("#order-state")).to_have_text("Refused: there are too few pieces left.")


def test_the_storefront_is_used_by_keyboard_alone(page: Page, worker: Workers) -> None:
    page.goto("/login?next=/")
    page.keyboard.type("anna")
    page.keyboard.press("Tab")
    page.get_by_label("Password", exact=True).focus()
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    expect(page.locator(".card")).not_to_have_count(0)

    def tab_to(name: str) -> None:
        for _ in range(80):
            page.keyboard.press("Tab")
            found = page.evaluate("document.activeElement.textContent.trim() || document.activeElement.id")
            outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none", f"{found} does not show that it has the focus"
            if name in found:
                return
        raise AssertionError(f"no way by Tab to {name}")

    tab_to("Skip to the products")
    page.keyboard.press("Enter")
    tab_to("to the basket")
    page.keyboard.press("Enter")
    tab_to("Place the order")
    page.keyboard.press("Enter")
    expect(page.locator("#order-section")).to_be_focused()
    expect(page.locator("#order-section")).to_have_attribute("data-state", "settled")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_everything_has_a_name_and_can_be_read(page: Page, api: Api, worker: Workers, scheme: str, width: int) -> None:
    for number, (name, cents) in enumerate(WORKBENCH.items(), 1):
        body = Products.body(name=name, description="For a workbench.", price_cents=cents)
        assert api.client.put(f"/v1/products/BENCH-{number:02}", json=body, headers={"If-Match": "*"}).is_success or (
            api.client.put(f"/v1/products/BENCH-{number:02}", json=body, headers={"If-None-Match": "*"}).is_success
        )
        assert api.client.put(f"/v1/products/BENCH-{number:02}/stock", json={"quantity": 100}).is_success
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.set_viewport_size({"width": width, "height": 860})
    page.goto("/login?next=/%3Fq%3Dworkbench")
    log_in(page, "anna")
    expect(page.locator(".card")).to_have_count(len(WORKBENCH))
    page.locator(".card").first.get_by_role("button").click()
    page.get_by_role("button", name="Place the order").click()
    expect(page.locator("#order-section")).to_have_attribute("data-state", "settled")
    page.locator(".card").nth(2).get_by_role("button").click()
    assert page.evaluate(NAMELESS) == []
    assert page.evaluate(TWICE) == []
    least, where = page.evaluate(CONTRAST)
    assert least >= 4.5, where
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert page.evaluate("[...document.querySelectorAll('h1, h2')].length") >= 3
    if folder := os.environ.get("PICTURES"):
        page.evaluate("scrollTo(0, 0)")
        page.screenshot(path=f"{folder}/storefront-{scheme}-{width}.png")

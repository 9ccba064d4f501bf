// The storefront: the public interface, and nothing that it does not have.

const PAGE = 24;
const WATCH_SECONDS = 60;
const STEPS = ["accepted", "settled", "shipped", "delivered"];
const WRONG = ["refused", "cancelled"];
const WORDS = {
  accepted: "Accepted: it is in the queue.",
  settled: "Settled: what you ordered is yours.",
  shipped: "Shipped: it is on its way.",
  delivered: "Delivered.",
  cancelled: "Cancelled.",
  unknown_product: "Refused: a product is no longer on sale.",
  too_little_stock: "Refused: there are too few pieces left.",
  mixed_currencies: "Refused: the products have different currencies.",
  key_reused: "Refused: it was sent twice with different contents.",
};

const $ = (id) => document.getElementById(id);
const money = (cents, currency) =>
  new Intl.NumberFormat("en", { style: "currency", currency }).format(cents / 100);

/** Make an element; text is only ever text. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

async function ask(path, options) {
  const answer = await fetch(path, { credentials: "same-origin", ...options });
  const content = answer.headers.get("content-type")?.includes("json") ? await answer.json() : null;
  return { status: answer.status, ok: answer.ok, content };
}

// ---- who one is ----------------------------------------------------------------------------------------------------

let me = null;

async function findOut() {
  const { status, ok, content } = await ask("/v1/me");
  me = ok ? content : null;
  leadBack();
  $("log-in").hidden = Boolean(me);
  $("log-out").hidden = $("who").hidden = !me;
  $("who").textContent = me ? me.name || "Logged in" : "";
  showBasket();
  if (!ok && status !== 401) complain("Whether you are logged in is not known right now.");
  await showHistory();
}

/** Have a log-in come back to what is shown now. */
function leadBack() {
  $("log-in").href = $("log-in-to-order").href = `/login?next=${encodeURIComponent(location.pathname + location.search)}`;
}

$("log-out").addEventListener("click", async () => {
  const { ok, status } = await ask("/logout", { method: "POST" });
  if (!ok && status !== 401) return complain("You are still logged in: the log-out did not get through. Try again.");
  stopWatching();
  $("order-section").hidden = true;
  await findOut();
  $("log-in").focus();
});

// ---- products ------------------------------------------------------------------------------------------------------

let asked = 0;
let last = "";

async function showProducts(after = "") {
  const number = ++asked;
  const query = new URLSearchParams({ limit: PAGE });
  const words = $("words").value.trim();
  if (words) query.set("q", words);
  if ($("in-stock").checked) query.set("in_stock", "true");
  if (after) query.set("after", after);
  const { ok, content } = await ask(`/v1/products?${query}`);
  if (number !== asked) return; // a later search has begun
  if (!ok) {
    $("found").textContent = "The products cannot be shown right now.";
    return;
  }
  const cards = content.map(card);
  if (after) $("list").append(...cards);
  else $("list").replaceChildren(...cards);
  last = content.length ? content[content.length - 1].sku : "";
  $("more").hidden = content.length < PAGE;
  const count = $("list").children.length;
  $("found").textContent = count ? `${count}${content.length < PAGE ? "" : " or more"} found` : "Nothing fits.";
  if (after && cards.length) cards[0].querySelector("button").focus();
}

function card(product) {
  const tile = make("div", { className: "tile", ariaHidden: "true" }, initials(product.name));
  tile.style.setProperty("--hue", hue(product.sku));
  const add = make("button", { type: "button", className: "quiet" }, "Add", make("span", { className: "unseen" }, ` ${product.name} to the basket`));
  add.addEventListener("click", () => put(product, (basket.get(product.sku)?.quantity ?? 0) + 1));
  return make("li", { className: "card" }, tile,
    make("div", { className: "card-body" },
      make("h3", {}, product.name),
      make("span", { className: "sku" }, product.sku),
      make("div", { className: "buy" }, make("span", { className: "price" }, money(product.price_cents, product.currency)), add)));
}

const initials = (name) => name.split(/\s+/).filter(Boolean).slice(0, 2).map((word) => [...word][0].toUpperCase()).join("");
const hue = (text) => [...text].reduce((sum, letter) => (sum * 31 + letter.codePointAt(0) * 47) % 360, 7);

let pause = 0;
function search() {
  const words = $("words").value.trim();
  history.replaceState(null, "", words ? `/?q=${encodeURIComponent(words)}` : "/");
  leadBack();
  clearTimeout(pause);
  pause = setTimeout(() => showProducts(), 200);
}
$("search").addEventListener("input", search);
$("search").addEventListener("submit", (event) => { event.preventDefault(); search(); });
$("more").addEventListener("click", () => showProducts(last));

// ---- basket --------------------------------------------------------------------------------------------------------

// It stays over a log-in. The key goes with its contents: what is sent again after a failure is the same order.
let basket = new Map();
let key = "";
try {
  const kept = JSON.parse(localStorage.getItem("basket") ?? "null");
  basket = new Map(kept.lines);
  key = kept.key;
} catch { /* nothing kept, or nothing that can be read */ }

function keep() {
  localStorage.setItem("basket", JSON.stringify({ lines: [...basket], key }));
}

function put(product, quantity) {
  if (quantity > 0) basket.set(product.sku, { ...product, quantity: Math.min(quantity, 1000) });
  else basket.delete(product.sku);
  key = crypto.randomUUID();
  keep();
  showBasket();
}

function showBasket() {
  const lines = [...basket.values()];
  const focused = document.activeElement?.id;
  $("basket").replaceChildren(...lines.map(line));
  if (focused?.startsWith("quantity-")) $(focused)?.focus();
  const currencies = new Set(lines.map((one) => one.currency));
  $("basket-empty").hidden = lines.length > 0;
  $("total").hidden = lines.length === 0;
  $("total").replaceChildren(make("span", {}, "Total"), make("span", {}, [...currencies].map((currency) =>
    money(lines.filter((one) => one.currency === currency).reduce((sum, one) => sum + one.price_cents * one.quantity, 0), currency)).join(" + ")));
  const may = me?.roles.includes("customer");
  $("order").hidden = !(lines.length && may);
  $("log-in-to-order").hidden = !(lines.length && !me);
  complain(lines.length && me && !may ? "You are logged in as someone who does not order here." : "");
}

function line(product) {
  const id = `quantity-${product.sku}`;
  const quantity = make("input", { id, type: "number", min: 1, max: 1000, value: product.quantity, required: true });
  quantity.addEventListener("change", () => put(product, Math.round(quantity.valueAsNumber) || 1));
  const remove = make("button", { type: "button", className: "quiet" }, "×", make("span", { className: "unseen" }, ` Remove ${product.name}`));
  remove.addEventListener("click", () => { put(product, 0); $("products").focus(); });
  return make("li", {},
    make("label", { htmlFor: id, className: "name" }, product.name, make("span", { className: "unseen" }, ", pieces")),
    quantity, remove);
}

function complain(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

// ---- order ---------------------------------------------------------------------------------------------------------

$("order").addEventListener("click", async () => {
  $("order").disabled = true;
  complain("");
  try {
    await place();
  } catch {
    complain("The order did not get through. Try again: it counts once.");
  } finally {
    $("order").disabled = false;
  }
});

async function place() {
  const body = JSON.stringify({ lines: [...basket.values()].map(({ sku, quantity }) => ({ sku, quantity })) });
  const headers = { "Content-Type": "application/json", "Idempotency-Key": key };
  for (let attempt = 1; ; attempt++) {
    const { status, content } = await ask("/v1/orders", { method: "POST", headers, body });
    if (status === 202) {
      basket = new Map();
      keep();
      showBasket();
      watch(content);
      return;
    }
    if (status === 401) {
      await findOut();
      return complain("Your session has ended. Log in again: the basket stays.");
    }
    if (status !== 503 || attempt === 3) return complain(content?.detail || "The order was not taken.");
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

let stopWatching = () => {};

/** Follow an order by its events, or by asking where there are none. */
function watch(order) {
  stopWatching();
  showOrder(order);
  $("order-section").hidden = false;
  $("order-section").focus();
  const address = `/v1/orders/${order.id}`;
  let timer = 0;
  let stopped = false;
  const until = Date.now() + WATCH_SECONDS * 1000;
  const poll = async () => {
    if (stopped) return;
    const { ok, content } = await ask(address).catch(() => ({ ok: false }));
    if (stopped) return;
    if (ok) showOrder(content);
    if ((!ok || content.state === "accepted") && Date.now() < until) timer = setTimeout(poll, 1000);
    else showHistory();
  };
  const events = new EventSource(`${address}/events`);
  const take = (event) => {
    if (!event.data) return;
    const { data: told } = JSON.parse(event.data);
    showOrder(told);
    if (told.state !== "accepted") showHistory();
    if (WRONG.includes(told.state) || told.state === "delivered") events.close();
  };
  for (const state of [...STEPS, ...WRONG]) events.addEventListener(`order.${state}`, take);
  // Where there is no such stream, or no longer: ask. A stream that only paused comes back by itself, but an order is seen moving.
  events.addEventListener("error", () => {
    if (events.readyState !== EventSource.CLOSED) return;
    clearTimeout(timer);
    timer = setTimeout(poll, 0);
  });
  stopWatching = () => { stopped = true; clearTimeout(timer); events.close(); };
}

function showOrder(order) {
  const steps = WRONG.includes(order.state) ? ["accepted", order.state] : STEPS;
  const reached = steps.indexOf(order.state);
  $("steps").replaceChildren(...steps.map((step, index) => {
    const item = make("li", { className: index > reached ? "" : WRONG.includes(step) ? "wrong" : "done" }, title(step));
    if (index === reached) item.setAttribute("aria-current", "step");
    return item;
  }));
  $("order-section").dataset.state = order.state;
  const total = order.total_cents ? ` ${money(order.total_cents, order.currency)}.` : "";
  $("order-state").textContent = (WORDS[order.refusal] ?? WORDS[order.state] ?? order.state) + total;
}

const title = (word) => word[0].toUpperCase() + word.slice(1);

async function showHistory() {
  const mine = me?.roles.includes("customer");
  const { ok, content } = mine ? await ask("/v1/orders?limit=8").catch(() => ({ ok: false })) : { ok: false };
  const orders = ok ? content.orders : [];
  $("history-section").hidden = orders.length === 0;
  const day = new Intl.DateTimeFormat("en", { month: "short", day: "numeric", hour: "numeric", minute: "2-digit" });
  $("history").replaceChildren(...orders.map((order) => make("li", {},
    make("span", { className: "name" }, day.format(new Date(order.accepted_at))),
    make("span", { className: "price" }, order.total_cents ? money(order.total_cents, order.currency) : "–"),
    make("span", { className: `state ${order.state}` }, title(order.state)))));
}

$("words").value = new URLSearchParams(location.search).get("q") ?? "";
await Promise.all([findOut(), showProducts()]);

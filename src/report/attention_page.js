"use strict";
/* ---- the data: what src/report/attention_page.c and attention_codes.c wrote ---- */
const data = JSON.parse(document.getElementById("data").textContent);
const T = data.tokens, H = data.heads, taught = data.panels.length > 1;
const UNREAD = 0, SUMMED = 1, READ = 2, UNKNOWN = 3; /* how a token is read; UNKNOWN: the page does not keep it */
const $ = id => document.getElementById(id);

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), c => c.charCodeAt(0));
}

async function inflate(base64) {
  const stream = new Blob([bytesOf(base64)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/* Planes (mean, then heads) of rows: entries first[i] … first[i+1]−1 of tokens, weights, flags are query i's. */
function parse(bytes, layer) {
  let at = 0;
  const number = () => {
    let value = 0, shift = 0, byte;
    do { byte = bytes[at++]; value |= (byte & 127) << shift; shift += 7; } while (byte > 127);
    return value;
  };
  const words = () => { const all = new Uint16Array(bytes.slice(at, at + 2 * H * T).buffer); at += 2 * H * T; return all; };
  const shares = () => { at += H * T; return bytes.subarray(at - H * T, at); };
  const planes = [];
  for (let p = 0; p <= H; p++) {
    const first = new Uint32Array(T + 1);
    for (let i = 0; i < T; i++) first[i + 1] = first[i] + number();
    const count = first[T], tokens = new Uint16Array(count), weights = new Float32Array(count);
    for (let i = 0; i < T; i++) for (let e = first[i], j = 0; e < first[i + 1]; e++) tokens[e] = j += number();
    for (let e = 0; e < count; e++) weights[e] = layer.scale * (bytes[at++] / 255) ** 2;
    const flags = layer.flagged ? bytes.subarray(at, at + count) : null;
    if (flags) { at += count; for (let e = 0; e < count; e++) if (flags[e] & 1) weights[e] = -weights[e]; }
    planes.push({first, tokens, weights, flags});
  }
  const found = {planes, read: words(), summed: words()};
  if (layer.compared) { found.hit = shares(); found.common = shares(); }
  return found;
}

const ready = new Map(); /* layers that were looked at */
function open(panel, n) {
  const key = panel * data.layers.length + n, layer = data.panels[panel].layers[n];
  if (!ready.has(key)) ready.set(key, inflate(layer.data).then(bytes => parse(bytes, layer)));
  return ready.get(key);
}

/* ---- tokens as people read them ---- */
/* Pieces of every token. A character lies in the token that holds its first byte; a token left without any shows "…". */
function piecesOfTokens() {
  const bytes = bytesOf(data.bytes), pieces = [], owner = [];
  data.lengths.forEach((length, n) => { pieces.push([]); for (let k = 0; k < length; k++) owner.push(n); });
  const strict = new TextDecoder("utf-8", {fatal: true, ignoreBOM: true});
  const named = /[\u0000-\u001f\u007f-\u00a0\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffc]/;
  for (let at = 0; at < bytes.length;) {
    const b = bytes[at], size = b < 0x80 ? 1 : b >= 0xf0 ? 4 : b >= 0xe0 ? 3 : b >= 0xc0 ? 2 : 1;
    let text = null;
    try { text = strict.decode(bytes.subarray(at, at + size)); } catch (wrong) { /* shown as a byte below */ }
    const to = pieces[owner[at]];
    if (text === null) { to.push(["chip", b.toString(16).toUpperCase().padStart(2, "0")]); at++; continue; }
    if (text === " ") to.push(["space", " "]);
    else if (text === "\n") to.push(["line", "⏎"]);
    else if (text === "\t") to.push(["mark", "⇥   "]);
    else if (named.test(text)) to.push(["chip", "U+" + text.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")]);
    else if (to.length && to[to.length - 1][0] === "text") to[to.length - 1][1] += text;
    else to.push(["text", text]);
    at += size;
  }
  pieces.forEach((list, n) => { if (!list.length) list.push(["mark", "…"]); });
  data.special.forEach(n => { pieces[n] = [["chip", pieces[n].map(piece => piece[1]).join("")]]; });
  return pieces;
}
const pieces = piecesOfTokens();
const plain = n => pieces[n].map(piece => piece[1]).join("").trim() || "space";

function fill(element, n, breaks) {
  element.replaceChildren(...pieces[n].flatMap(([type, text]) => {
    if (type === "text") return [document.createTextNode(text)];
    const piece = make("span", type === "line" ? "mark" : type, text);
    return type === "line" && breaks ? [piece, document.createTextNode("\n")] : [piece];
  }));
}

/* ---- small helpers ---- */
function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}
function percent(x) {
  const value = 100 * Math.abs(x), sign = x < 0 ? "−" : "";
  if (value > 0 && value < 0.01) return sign + "<0.01%";
  return sign + (value >= 99.95 ? "100" : value >= 10 ? value.toFixed(0) : value >= 1 ? value.toFixed(1) : value.toFixed(2)) + "%";
}
function nameOf(path) {
  const parts = path.split("/").filter(Boolean), step = /^step-0*(\d+)$/.exec(parts[parts.length - 1] || "");
  const name = parts.filter(part => part !== "checkpoints" && part !== "model" && part !== "." && !/^step-\d+$/.test(part)).pop() || path;
  return step ? `${name}, step ${Number(step[1]).toLocaleString("en")}` : name;
}

/* ---- what is chosen ---- */
const now = {layer: 0, head: -1, token: T - 1, held: false, peek: -1};
let shown = null;       /* the chosen layer of every panel */
const texts = [];       /* token elements of every panel */
const roles = {student: "Student", teacher: "Teacher", model: "Model"};

/* Query i of a panel: weight and state of every token up to it. */
function rowOf(panel, i) {
  const layer = shown[panel], plane = layer.planes[now.head + 1];
  const weights = new Float32Array(i + 1), states = new Uint8Array(i + 1), from = plane.first[i], to = plane.first[i + 1];
  const cut = to - from >= (now.head < 0 ? data.keptMean : data.kept) && to - from <= i;
  if (cut) states.fill(UNKNOWN);
  for (let e = from; e < to; e++) {
    weights[plane.tokens[e]] = plane.weights[e];
    states[plane.tokens[e]] = plane.flags && plane.flags[e] & 2 ? SUMMED : READ;
  }
  return {weights, states, cut};
}
/* Of the chosen head, or the mean over heads. */
function figure(values, i) {
  if (now.head >= 0) return values[now.head * T + i];
  let sum = 0;
  for (let h = 0; h < H; h++) sum += values[h * T + i];
  return sum / H;
}

/* ---- drawing ---- */
const deepest = () => Number(getComputedStyle(document.documentElement).getPropertyValue("--deepest"));

function paintTexts(rows) {
  const i = now.token, most = deepest();
  let top = 1e-6;
  for (const row of rows) for (const w of row.weights) top = Math.max(top, Math.abs(w));
  rows.forEach((row, panel) => {
    const role = data.panels[panel].role, other = taught && panel === 0 ? rows[1] : null;
    texts[panel].forEach((element, j) => {
      let name = "t", colour = "";
      if (j > i) name += " later";
      else {
        const w = row.weights[j], state = row.states[j];
        if (state === UNREAD) name += " unread";
        if (state === SUMMED) name += " summed";
        if (state === UNKNOWN) name += " unknown";
        if (state === UNREAD && other && other.weights[j] >= 0.03) name += " missed";
        if (w) colour = `rgb(var(--${w < 0 ? "less" : role === "teacher" ? "teacher" : "student"}) / ${(most * Math.sqrt(Math.abs(w) / top)).toFixed(3)})`;
      }
      if (j === i) name += " now";
      if (j === now.peek) name += " peeked";
      if (element.className !== name) element.className = name;
      element.style.backgroundColor = colour;
      element.tabIndex = j === i ? 0 : -1;
      if ((element.getAttribute("aria-selected") === "true") !== (j === i)) element.setAttribute("aria-selected", j === i);
    });
  });
}

function addFigure(term, value, detail, share, role) {
  const line = make("div", role), figure = make("dd", "", value);
  if (detail) figure.append(" ", make("small", "", detail));
  line.append(make("dt", "", term), figure);
  if (share !== null) {
    const meter = make("div", "meter"), bar = make("i");
    bar.style.width = 100 * Math.min(1, share) + "%";
    meter.append(bar);
    line.append(meter);
  }
  $("figures").append(line);
}

function showFigures() {
  const i = now.token, own = shown[0], all = i + 1, role = data.panels[0].role;
  const count = x => (Number.isInteger(x) ? String(x) : x.toFixed(1));
  const read = figure(own.read, i), summed = figure(own.summed, i);
  $("figures").replaceChildren();
  addFigure(now.head < 0 ? "tokens a head reads" : "tokens read", count(read), `of ${all}`, read / all, role);
  if (own.hit) {
    addFigure("teacher’s attention on them", percent(figure(own.hit, i) / 255), "", figure(own.hit, i) / 255, "teacher");
    addFigure("weights in common", percent(figure(own.common, i) / 255), "", figure(own.common, i) / 255, role);
  }
  if (own.summed.some(n => n > 0)) addFigure("more in blocks’ summaries", count(summed), `of ${all}`, summed / all, role);
}

function showLists(rows) {
  const lists = $("lists");
  lists.replaceChildren();
  rows.forEach((row, panel) => {
    const role = data.panels[panel].role, box = make("div", role), list = make("ol");
    const order = [...row.weights.keys()].filter(j => row.weights[j]).sort((a, b) => Math.abs(row.weights[b]) - Math.abs(row.weights[a])).slice(0, 8);
    box.append(make("h3", "", taught ? roles[role] : "Strongest"), list);
    for (const j of order) {
      const item = make("li"), button = make("button", row.weights[j] < 0 ? "negative" : ""), bar = make("i"), text = make("span");
      bar.style.width = 100 * Math.min(1, Math.abs(row.weights[j]) / Math.max(1e-6, Math.abs(row.weights[order[0]]))) + "%";
      fill(text, j, false);
      button.type = "button";
      button.title = `token ${j}: go there`;
      button.setAttribute("aria-label", `${plain(j)}, token ${j}, ${percent(row.weights[j])}: go there`);
      button.append(bar, text, make("span", "", percent(row.weights[j])));
      button.addEventListener("click", () => { choose(j); texts[panel][j].focus(); });
      item.append(button);
      list.append(item);
    }
    if (row.cut) list.append(make("li", "hint", `the page keeps the ${now.head < 0 ? data.keptMean : data.kept} heaviest`));
    lists.append(box);
  });
}

function showPlace(rows) {
  const i = now.token;
  fill($("token"), i, false);
  $("pin").setAttribute("aria-pressed", now.held);
  $("back").disabled = i === 0;
  $("next").disabled = i === T - 1;
  let text = `token ${i} of ${T}${now.held ? ", held" : ""}`;
  if (now.peek >= 0 && now.peek <= i) {
    const of = row => (row.states[now.peek] === UNREAD ? "not read" : row.states[now.peek] === UNKNOWN ? "little or none" : percent(row.weights[now.peek]));
    text = `“${plain(now.peek)}”: ` + rows.map((row, panel) => (taught ? roles[data.panels[panel].role].toLowerCase() + " " : "") + of(row)).join(", ");
  }
  $("place").textContent = text;
}

let drawn = -1, asked = false;
function draw() {
  asked = false;
  if (!shown) return;
  const rows = data.panels.map((_, panel) => rowOf(panel, now.token));
  paintTexts(rows);
  showPlace(rows);
  if (drawn !== now.token) { /* a peek changes neither */
    showFigures();
    showLists(rows);
    document.querySelectorAll(".map i").forEach(line => { line.style.top = 100 * (now.token + 0.5) / T + "%"; });
  }
  drawn = now.token;
}
function redraw() {
  if (!asked) { asked = true; requestAnimationFrame(draw); }
}

/* Query by token; as dark as the square root of the weight. */
function drawMaps() {
  data.panels.forEach((panel, n) => {
    const canvas = $("map" + n), context = canvas.getContext("2d"), image = context.createImageData(T, T);
    const plane = shown[n].planes[now.head + 1], style = getComputedStyle(document.documentElement);
    const ink = name => style.getPropertyValue(name).trim().split(/\s+/).map(Number);
    const plus = ink(panel.role === "teacher" ? "--teacher" : "--student"), minus = ink("--less");
    let top = 1e-6;
    for (const w of plane.weights) top = Math.max(top, Math.abs(w));
    for (let i = 0; i < T; i++) for (let e = plane.first[i]; e < plane.first[i + 1]; e++) {
      const at = 4 * (i * T + plane.tokens[e]), colour = plane.weights[e] < 0 ? minus : plus;
      for (let c = 0; c < 3; c++) image.data[at + c] = colour[c];
      image.data[at + 3] = 12 + 243 * Math.sqrt(Math.abs(plane.weights[e]) / top);
    }
    context.putImageData(image, 0, 0);
  });
}

async function showLayer() {
  const layer = now.layer;
  const found = await Promise.all(data.panels.map((_, panel) => open(panel, layer)));
  if (layer !== now.layer) return;
  shown = found;
  drawn = -1;
  document.querySelectorAll("#layers button").forEach((button, n) => button.setAttribute("aria-pressed", n === layer));
  document.querySelectorAll("#heads button").forEach((button, n) => button.setAttribute("aria-pressed", n === now.head + 1));
  data.panels.forEach((panel, n) => {
    const kind = panel.role === "teacher" ? "full" : data.layers[layer].kind;
    $("kind" + n).textContent = ` layer ${data.layers[layer].layer}, ${kind}`;
    $("density" + n).textContent = `${percent(panel.layers[layer].density)} of the pairs`;
  });
  draw();
  drawMaps();
}

/* ---- choosing ---- */
function choose(i) {
  now.token = Math.max(0, Math.min(T - 1, i));
  now.peek = -1;
  redraw();
}
function hold(on) {
  now.held = on;
  redraw();
}
/* The token above (−1) or below (+1) another: in the nearest line, the nearest across. */
function beside(list, i, way) {
  const from = list[i].getClientRects()[0], x = (from.left + from.right) / 2;
  let best = i, line = null;
  for (let j = i + way; j >= 0 && j < T; j += way) {
    const box = list[j].getClientRects()[0];
    if (way * (box.top - from.top) < from.height / 2) continue;
    if (line === null) line = box.top;
    if (Math.abs(box.top - line) > from.height / 2) break;
    const distance = Math.abs((box.left + box.right) / 2 - x), own = list[best].getClientRects()[0];
    if (best === i || distance < Math.abs((own.left + own.right) / 2 - x)) best = j;
  }
  return best;
}
function say() {
  const row = rowOf(0, now.token);
  let best = 0;
  row.weights.forEach((w, j) => { if (Math.abs(w) > Math.abs(row.weights[best])) best = j; });
  $("say").textContent = `${plain(now.token)}: reads ${Math.round(figure(shown[0].read, now.token))} of ${now.token + 1} tokens` +
    (shown[0].hit ? `, ${percent(figure(shown[0].hit, now.token) / 255)} of the teacher’s attention` : "") + `; most ${plain(best)}, ${percent(row.weights[best])}`;
}
function keyed(event, panel) {
  const list = texts[panel], i = now.token;
  const to = {ArrowLeft: i - 1, ArrowRight: i + 1, Home: 0, End: T - 1}[event.key] ??
    (event.key === "ArrowUp" ? beside(list, i, -1) : event.key === "ArrowDown" ? beside(list, i, 1) : null);
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (to !== null) {
    choose(to);
    draw();
    list[now.token].focus();
    say();
  } else if (event.key === "Enter" || event.key === " ") hold(!now.held);
  else return;
  event.preventDefault();
}

/* Text that scrolls away under a mouse at rest chooses nothing. */
const mouse = {x: -1, y: -1};
function rested(event) {
  const still = event.clientX === mouse.x && event.clientY === mouse.y;
  mouse.x = event.clientX;
  mouse.y = event.clientY;
  return still;
}

/* ---- building the page ---- */
function addPanel(panel, n) {
  const section = make("section", "panel " + panel.role), head = make("div"), title = make("h2", "", roles[panel.role]), kind = make("span"), density = make("p");
  const text = make("div", "text");
  kind.id = "kind" + n;
  density.id = "density" + n;
  title.append(kind);
  head.append(title, density);
  text.setAttribute("role", "listbox");
  text.setAttribute("aria-label", `tokens, coloured by the weight that the ${panel.role} gives them`);
  texts.push(pieces.map((_, j) => {
    const token = make("span", "t");
    token.setAttribute("role", "option");
    fill(token, j, true);
    text.append(token);
    return token;
  }));
  const tokenOf = event => (event.target.closest(".t") ? texts[n].indexOf(event.target.closest(".t")) : -1);
  text.addEventListener("mouseover", event => {
    const j = tokenOf(event);
    if (j < 0 || rested(event)) return;
    if (!now.held) choose(j);
    else if (now.peek !== j) { now.peek = j; redraw(); }
  });
  text.addEventListener("mouseleave", () => { if (now.peek >= 0) { now.peek = -1; redraw(); } });
  text.addEventListener("click", event => {
    const j = tokenOf(event);
    if (j < 0) return;
    const again = now.held && j === now.token;
    choose(j);
    hold(!again);
  });
  text.addEventListener("focusin", event => { const j = tokenOf(event); if (j >= 0 && j !== now.token && !now.held) choose(j); });
  text.addEventListener("keydown", event => keyed(event, n));
  const reading = make("div", "reading");
  if (panel.role === "teacher") reading.append(sample("swatch", "weight", "the more colour, the more weight; one scale for both"));
  else {
    reading.append(sample("swatch", "read", "by weight"), sample("unread", "grey", "not read"));
    if (taught) reading.append(sample("missed", "missed", "not read, but 3% or more of the teacher’s"));
  }
  section.append(head, text, reading);
  $("main").insertBefore(section, $("main").querySelector("aside"));
  addMap(panel, n);
}
function sample(className, text, means) {
  const line = make("span");
  line.append(make("span", className, text), " " + means);
  return line;
}
function addMap(panel, n) {
  const map = make("div", "map"), canvas = make("canvas");
  canvas.id = "map" + n;
  canvas.width = canvas.height = T;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `heat map of the ${panel.role}: a row a query, a column a token`);
  map.append(canvas, make("i"));
  map.addEventListener("click", event => {
    choose(Math.floor(T * event.offsetY / map.clientHeight));
    hold(true);
  });
  $("maps").append(map);
}

function addBars(button, n) {
  const facts = data.layers[n], shares = taught ? [facts.density, facts.hit] : [facts.density], space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("width", shares.length * 12 - 2);
  svg.setAttribute("height", 34);
  svg.setAttribute("aria-hidden", "true");
  shares.forEach((share, k) => [["track", 34], ["bar", Math.max(1, 34 * share)]].forEach(([name, height]) => {
    const bar = document.createElementNS(space, "rect");
    Object.entries({x: 12 * k, y: 34 - height, width: 10, height, rx: 2}).forEach(([key, value]) => bar.setAttribute(key, value));
    bar.setAttribute("class", `${name} ${k === 0 ? "student" : "teacher"}`);
    svg.append(bar);
  }));
  button.append(svg, String(facts.layer));
  if (new Set(data.layers.map(layer => layer.kind)).size > 1) button.append(make("small", "", facts.kind));
  const means = `layer ${facts.layer}, ${facts.kind}: reads ${percent(facts.density)} of the pairs` +
    (taught ? `, where ${percent(facts.hit)} of the teacher’s attention lies` : "");
  button.title = means;
  button.setAttribute("aria-label", means);
}
function addChoices() {
  const key = $("layer-key");
  key.append(make("b", "", "Layer"));
  const add = (role, text) => { const item = make("span", "key " + role); item.append(make("i"), text); key.append(item); };
  add("student", "pairs read");
  if (taught) add("teacher", "teacher’s attention found");
  data.layers.forEach((_, n) => {
    const button = make("button");
    button.type = "button";
    addBars(button, n);
    button.addEventListener("click", () => { now.layer = n; showLayer(); });
    $("layers").append(button);
  });
  for (let h = -1; h < H; h++) {
    const button = make("button", "", h < 0 ? "mean" : String(h));
    button.type = "button";
    button.setAttribute("aria-label", h < 0 ? "mean over the heads" : `head ${h}`);
    button.addEventListener("click", () => { now.head = h; showLayer(); });
    $("heads").append(button);
  }
}
function addHeader() {
  const kinds = new Map(), names = $("names"), facts = $("facts");
  data.panels.forEach((panel, n) => {
    if (n > 0) names.append(make("span", "beside", " beside "));
    const name = make("span", "", nameOf(panel.name));
    name.title = panel.name;
    names.append(name);
  });
  data.layers.forEach(layer => kinds.set(layer.kind, (kinds.get(layer.kind) || 0) + 1));
  const add = (strong, text) => { const fact = make("span"); fact.append(make("b", "", strong), " " + text); facts.append(fact); };
  kinds.forEach((count, kind) => add(String(count), `${count === 1 ? "layer" : "layers"} ${kind}`));
  add(String(T), "tokens");
  add(percent(data.density), "of the pairs are read");
  if (taught) add(percent(data.hit), "of the teacher’s attention lies on them");
  document.title = `${nameOf(data.panels[0].name)}: what it reads (${[...kinds.keys()].join(", ")}; ${percent(data.density)} of the pairs)`;
}

function build() {
  addHeader();
  addChoices();
  if (!taught) $("main").classList.add("alone");
  data.panels.forEach(addPanel);
  $("back").addEventListener("click", () => choose(now.token - 1));
  $("next").addEventListener("click", () => choose(now.token + 1));
  $("pin").addEventListener("click", () => hold(!now.held));
  document.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") { now.peek = -1; hold(false); }
    const layer = now.layer + (event.key === "]" ? 1 : event.key === "[" ? -1 : 0);
    if (layer !== now.layer && data.layers[layer]) { now.layer = layer; showLayer(); }
  });
  document.addEventListener("mousemove", rested);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { redraw(); drawMaps(); });
  return showLayer();
}
build().catch(error => {
  $("trouble").hidden = false;
  $("trouble").textContent = "This browser cannot show the page: it needs DecompressionStream (browsers since 2023). " + error;
});

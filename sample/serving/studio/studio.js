// The studio: a page over the server's own API (docs/serve.md). It keeps nothing, and loads nothing from elsewhere.

const $ = (id) => document.getElementById(id);
const state = { facts: null, key: "", stop: null, votes: [], source: null };

// --- the server ------------------------------------------------------------------------------------------------------

class Refused extends Error {}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (state.key) headers.Authorization = `Bearer ${state.key}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server does not answer. Start it again with `unitok studio --model …`, then try once more.");
  }
  if (answer.ok) return answer;
  if (answer.status === 401) $("key-form").hidden = false;
  const body = await answer.json().catch(() => ({}));
  throw new Refused(body.error?.message ?? `The server answered ${answer.status}.`);
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refused("The server went away while it was drawing. Start it again, then try once more.");
    }
    if (part.done) return;
    text += part.value;
    for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
      const data = text.slice(0, end).split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("");
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

function tell(message) {
  $("trouble").textContent = message ?? "";
  $("trouble").hidden = !message;
}

async function meet() {
  tell();
  try {
    const [facts] = (await (await ask("v1/models")).json()).data;
    state.facts = facts;
    $("key-form").hidden = true;
    $("model").textContent = `${facts.id}: ${facts.objective}, ${facts.size} pixels, learned ${facts.tasks.join(", ") || "captions and pictures"}`;
    offer(facts);
  } catch (error) {
    $("model").textContent = "No model yet.";
    tell(error.message);
  }
}

function offer(facts) {
  const knows = (task) => !facts.tasks.length || facts.tasks.includes(task);
  $("instruct").hidden = !facts.tasks.includes("edit");
  $("tab-look").hidden = !knows("text_to_image");
  $("tab-tell").hidden = !facts.tasks.includes("interleaved");
  $("tab-ask").hidden = !(knows("question") || knows("image_to_text"));
  $("settings").replaceChildren(...Object.entries(facts.settings).map(([name, own]) => {
    const label = document.createElement("label");
    const field = document.createElement("input");
    field.dataset.setting = name;
    field.placeholder = JSON.stringify(own);
    field.size = 10;
    label.append(name.replaceAll("_", " "), field);
    return label;
  }));
}

function settings() {
  const found = {};
  for (const field of $("settings").querySelectorAll("input")) {
    if (!field.value.trim()) continue;
    try {
      found[field.dataset.setting] = JSON.parse(field.value);
    } catch {
      throw new Refused(`${field.dataset.setting} is ${field.value}: give a number, true or false, or a list such as [1, 2].`);
    }
  }
  return found;
}

// --- pictures that are being drawn -----------------------------------------------------------------------------------

class Card {
  constructor(title) {
    this.figure = document.createElement("figure");
    this.image = document.createElement("img");
    this.image.alt = `${title}, being drawn`;
    const [width, height] = state.facts.size.split("x").map(Number);
    this.image.style.setProperty("--shape", `${width} / ${height}`);
    this.image.classList.toggle("small", width < 200);
    this.progress = document.createElement("progress");
    this.progress.max = 1;
    this.progress.setAttribute("aria-label", "Drawn so far");
    this.caption = document.createElement("figcaption");
    this.caption.textContent = title;
    this.title = title;
    this.figure.append(this.image, this.progress, this.caption);
  }

  event(event) {
    if (event.b64_json) this.image.src = `data:image/png;base64,${event.b64_json}`;
    if (event.step !== undefined) {
      this.progress.value = event.step / event.steps;
    }
    if (event.record) this.finish(event.b64_json, event.record);
  }

  finish(base64, record) {
    this.record = record;
    this.base64 = base64;
    this.progress.remove();
    this.image.alt = this.title;
    const small = document.createElement("small");
    small.textContent = `seed ${record.seed}, guidance ${JSON.stringify(record.settings.guidance)}`;
    this.caption.append(small);
    const row = document.createElement("div");
    row.className = "row";
    const made = record.made_from || record.source;
    if (!made) row.append(button("Command", () => copy(asCommand(record))), button("Python", () => copy(asPython(record))), button("curl", () => copy(asCurl(record))));
    row.append(button("Save", () => save(withText(bytes(base64), "unitok", JSON.stringify(record)), `${record.seed}.png`, "image/png")));
    row.append(button("Look", () => lookAt(new Blob([bytes(base64)], { type: "image/png" }), record.caption)));
    row.append(button("Change", () => take(new Blob([bytes(base64)], { type: "image/png" }), record.caption)));
    this.figure.append(row);
  }
}

function button(text, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.addEventListener("click", () => act(made));
  return made;
}

async function stream(path, options, cards) {
  const answer = await ask(path, { method: "POST", ...options, signal: state.stop.signal });
  for await (const event of events(answer)) {
    if (event.type === "error") throw new Refused(event.error?.message ?? "The server failed.");
    cards[event.picture]?.event(event);
  }
}

async function working(form, act) {
  tell();
  if (!state.facts) await meet();
  if (!state.facts) return;
  state.stop?.abort();
  state.stop = new AbortController();
  const stops = form.querySelectorAll(".stop"), mains = form.querySelectorAll(".main");
  stops.forEach((one) => (one.disabled = false));
  mains.forEach((one) => (one.disabled = true));
  try {
    await act();
  } catch (error) {
    if (error.name !== "AbortError") tell(error.message);
    for (const progress of document.querySelectorAll("progress")) progress.closest("figure").remove();
  } finally {
    stops.forEach((one) => (one.disabled = true));
    mains.forEach((one) => (one.disabled = false));
  }
}

for (const one of document.querySelectorAll(".stop")) one.addEventListener("click", () => state.stop?.abort());

const chance = () => Math.floor(Math.random() * 2 ** 31);
const seedOf = (id) => ($(id).value === "" ? chance() : Number($(id).value));

$("draw-form").addEventListener("submit", (event) => {
  event.preventDefault();
  working(event.target, async () => {
    const prompt = $("caption").value, n = Number($("count").value), seed = seedOf("seed");
    const common = { prompt, n, seed, stream: true, partial_images: 16, ...settings() };
    const guided = Array.from({ length: n }, () => new Card(prompt));
    const requests = [[common, guided]];
    if ($("plain").checked) requests.push([{ ...common, guidance: 1 }, guided.map(() => new Card(prompt))]);
    const pairs = guided.map((_, place) => requests.map(([, cards]) => cards[place]));
    $("drawn").replaceChildren(...pairs.flat().map((card) => card.figure));
    const headers = { "Content-Type": "application/json" };
    await Promise.all(requests.map(([body, cards]) => stream("v1/images/generations", { headers, body: JSON.stringify(body) }, cards)));
    if ($("plain").checked) pairs.forEach(vote);
  });
});

function vote(pair) {
  for (const [place, card] of pair.entries()) {
    card.figure.querySelector(".row").append(button("Better", (made) => {
      state.votes = state.votes.filter((one) => one.of !== pair);
      state.votes.push({ of: pair, better: card.record, worse: pair[1 - place].record });
      for (const one of pair) for (const other of one.figure.querySelectorAll("[aria-pressed]")) other.setAttribute("aria-pressed", "false");
      made.setAttribute("aria-pressed", "true");
      $("save-votes").hidden = false;
    }));
  }
}

$("save-votes").addEventListener("click", () => {
  const lines = state.votes.map(({ better, worse }) => JSON.stringify({ better, worse }) + "\n");
  save(lines, "votes.jsonl", "application/jsonl");
});

// --- how to draw a picture again -------------------------------------------------------------------------------------

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

function given(record) {
  const own = state.facts.settings;
  return Object.entries(record.settings).filter(([name, value]) => JSON.stringify(value) !== JSON.stringify(own[name]));
}

function asCommand(record) {
  const options = given(record).map(([name, value]) => ` --${name} ${typeof value === "object" ? quoted(JSON.stringify(value)) : value}`);
  return `unitok sample ${quoted(record.caption)} --model MODEL --n 1 --seed ${record.seed}${options.join("")} --out drawn`;
}

function asCurl(record) {
  const body = JSON.stringify({ prompt: record.caption, seed: record.seed, ...Object.fromEntries(given(record)) });
  const key = state.key ? " -H 'Authorization: Bearer KEY'" : "";
  return `curl -s ${location.origin}/v1/images/generations -H 'Content-Type: application/json'${key} -d ${quoted(body)}`;
}

function asPython(record) {
  const python = (value) => JSON.stringify(value).replace(/\btrue\b/g, "True").replace(/\bfalse\b/g, "False").replace(/\bnull\b/g, "None");
  const options = given(record).map(([name, value]) => `${name}=${python(value)}`).join(", ");
  return [
    "from unitok.model import UniTok", "from unitok.sample.pipeline import draw, settings_for", "from tokenizers_vq.images import save_png", "",
    'model = UniTok.from_pretrained("MODEL")',
    `pictures = draw(model, [${JSON.stringify(record.caption)}], settings_for(model, dict(${options})), [${record.seed}])`,
    'save_png("drawn.png", pictures[0])', "",
  ].join("\n");
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    tell();
  } catch {
    tell(text); // a page without the right to the clipboard shows it
  }
}

function bytes(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

function crc(data) {
  let sum = -1;
  for (const byte of data) {
    sum ^= byte;
    for (let bit = 0; bit < 8; bit++) sum = (sum >>> 1) ^ (0xedb88320 & -(sum & 1));
  }
  return (sum ^ -1) >>> 0;
}

// A PNG file with a text in it (an iTXt chunk behind the head, which takes 33 bytes).
function withText(png, name, text) {
  const body = new TextEncoder().encode(`iTXt${name}\0\0\0\0\0${text}`);
  const chunk = new Uint8Array(body.length + 8), view = new DataView(chunk.buffer);
  view.setUint32(0, body.length - 4);
  chunk.set(body, 4);
  view.setUint32(body.length + 4, crc(body));
  return [png.slice(0, 33), chunk, png.slice(33)];
}

function save(parts, name, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(parts, { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// --- a picture that is changed ---------------------------------------------------------------------------------------

async function take(blob, caption) {
  let picture;
  try {
    picture = await createImageBitmap(blob);
  } catch {
    tell("This file is no picture that a browser can show: choose a PNG, JPEG or WebP file.");
    return;
  }
  tell();
  for (const canvas of [$("picture"), $("mask")]) [canvas.width, canvas.height] = [picture.width, picture.height];
  $("picture").getContext("2d").drawImage(picture, 0, 0);
  $("canvases").classList.toggle("small", picture.width < 200);
  $("brush").max = Math.max(2, Math.round(Math.max(picture.width, picture.height) / 2));
  $("brush").value = Math.max(1, Math.round(Math.max(picture.width, picture.height) / 8));
  $("easel").hidden = false;
  state.source = blob;
  if (caption !== undefined) $("wish").value = caption;
  show($("tab-change"));
}

function paint(event) {
  const canvas = $("mask"), box = canvas.getBoundingClientRect(), brush = canvas.getContext("2d");
  const x = ((event.clientX - box.left) / box.width) * canvas.width, y = ((event.clientY - box.top) / box.height) * canvas.height;
  brush.fillStyle = "#f0f";
  brush.beginPath();
  brush.arc(x, y, $("brush").value / 2, 0, 2 * Math.PI);
  brush.fill();
}

$("mask").addEventListener("pointerdown", (event) => {
  $("mask").setPointerCapture(event.pointerId);
  paint(event);
});
$("mask").addEventListener("pointermove", (event) => event.buttons && paint(event));
$("clear").addEventListener("click", () => $("mask").getContext("2d").clearRect(0, 0, $("mask").width, $("mask").height));
$("add-box").addEventListener("click", () => {
  const [left, top, right, bottom] = $("box").value.split(/[\s,]+/).map(Number);
  if (!(left < right && top < bottom)) return tell("A box is left, top, right, bottom in pixels, such as 8, 8, 24, 24.");
  tell();
  const brush = $("mask").getContext("2d");
  brush.fillStyle = "#f0f";
  brush.fillRect(left, top, right - left, bottom - top);
});
$("file").addEventListener("change", () => $("file").files[0] && take($("file").files[0]));

// The mask as the API has it: transparent where it is drawn anew.
async function maskFile() {
  const from = $("mask"), painted = from.getContext("2d").getImageData(0, 0, from.width, from.height);
  let any = false;
  for (let at = 0; at < painted.data.length; at += 4) {
    const marked = painted.data[at + 3] > 127;
    any ||= marked;
    painted.data.set([0, 0, 0, marked ? 0 : 255], at);
  }
  if (!any) throw new Refused("Nothing is painted: paint what is to be drawn anew, or mark a box.");
  const canvas = new OffscreenCanvas(from.width, from.height);
  canvas.getContext("2d").putImageData(painted, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}

$("change-form").addEventListener("submit", (event) => {
  event.preventDefault();
  working(event.target, async () => {
    if (!state.source) throw new Refused("Choose a picture first, or draw one and press Change.");
    const n = Number($("change-count").value), prompt = $("wish").value, body = new FormData();
    body.append("image", state.source, "picture.png");
    if (event.submitter?.value !== "instruct") body.append("mask", await maskFile(), "mask.png");
    for (const [name, value] of Object.entries({ prompt, n, seed: seedOf("change-seed"), stream: true, partial_images: 16 })) body.append(name, value);
    const cards = Array.from({ length: n }, () => new Card(prompt));
    $("changed").replaceChildren(...cards.map((card) => card.figure));
    await stream("v1/images/edits", { body }, cards);
  });
});

// --- the codes of a picture ------------------------------------------------------------------------------------------

const inside = { picture: null, address: "", found: null };

function lookAt(blob, caption) {
  inside.picture = blob;
  $("look-caption").value = caption;
  show($("tab-look"));
  $("look-form").requestSubmit();
}

$("look-file").addEventListener("change", () => {
  [inside.picture] = $("look-file").files;
});

$("look-form").addEventListener("submit", (event) => {
  event.preventDefault();
  working(event.target, async () => {
    if (!inside.picture) throw new Refused("Choose a picture first, or draw one and press Look.");
    const body = new FormData();
    body.append("image", inside.picture, "picture.png");
    body.append("prompt", $("look-caption").value);
    inside.found = await (await ask("v1/images/inspections", { method: "POST", body, signal: state.stop.signal })).json();
    URL.revokeObjectURL(inside.address);
    inside.address = URL.createObjectURL(inside.picture);
    const names = inside.found.grids.map(([rows, columns], number) => new Option(`${rows} x ${columns}`, number));
    $("map").replaceChildren(...names);
    $("map").value = names.length - 1;
    $("map-label").hidden = names.length < 2;
    showCodes();
  });
});

for (const id of ["shown", "map"]) $(id).addEventListener("change", () => inside.found && showCodes());

function showCodes() {
  const { grids, codes, probabilities, entropies } = inside.found, which = Number($("map").value);
  const begin = grids.slice(0, which).reduce((sum, [rows, columns]) => sum + rows * columns, 0);
  const [rows, columns] = grids[which], what = $("shown").value;
  const mean = (values) => values.reduce((sum, one) => sum + one, 0) / values.length;
  const worst = Math.max(...entropies, 1e-9);
  const cells = Array.from({ length: rows * columns }, (_, place) => {
    const at = begin + place, cell = document.createElement("button");
    const said = `code ${codes[at]}, probability ${(100 * probabilities[at]).toPrecision(2)} %, entropy ${entropies[at].toFixed(2)} bits`;
    cell.type = "button";
    cell.dataset.code = codes[at];
    cell.title = said;
    cell.setAttribute("aria-label", `Row ${Math.floor(place / columns) + 1}, column ${(place % columns) + 1}: ${said}`);
    if (what === "codes") cell.textContent = columns <= 16 ? codes[at] : "";
    else {
      const heat = what === "probabilities" ? 1 - probabilities[at] : entropies[at] / worst;
      cell.style.backgroundColor = `rgb(220 20 60 / ${(0.85 * heat).toFixed(3)})`;
    }
    cell.addEventListener("click", () => {
      const same = [...$("codes").children].filter((one) => one.dataset.code === cell.dataset.code);
      for (const one of $("codes").children) one.classList.toggle("same", same.includes(one));
      $("told-code").textContent = `${cell.getAttribute("aria-label")}. It stands at ${same.length} of ${cells.length} places.`;
    });
    return cell;
  });
  const [width, height] = state.facts.size.split("x").map(Number);
  $("codes").style.gridTemplate = `repeat(${rows}, 1fr) / repeat(${columns}, 1fr)`;
  $("codes").style.aspectRatio = `${width} / ${height}`;
  $("codes").style.backgroundImage = `url(${inside.address})`;
  $("codes").classList.toggle("small", width < 200);
  $("codes").replaceChildren(...cells);
  const here = (values) => values.slice(begin, begin + rows * columns);
  $("told-code").textContent =
    `${new Set(here(codes)).size} different codes at ${cells.length} places; ` +
    `on average ${(-mean(here(probabilities).map((one) => Math.log2(Math.max(one, 1e-12))))).toFixed(2)} bits a code by this caption.`;
}

// --- a picture that is asked about -----------------------------------------------------------------------------------

$("ask-file").addEventListener("change", () => {
  const [file] = $("ask-file").files;
  if (!file) return;
  const reader = new FileReader();
  reader.onload = () => {
    $("asked").src = reader.result;
    $("asked").hidden = false;
    $("asked").onload = () => $("asked").classList.toggle("small", $("asked").naturalWidth < 200);
  };
  reader.readAsDataURL(file);
});

$("ask-form").addEventListener("submit", (event) => {
  event.preventDefault();
  working(event.target, async () => {
    if ($("asked").hidden) throw new Refused("Choose a picture first.");
    const question = $("question").value.trim();
    const content = [{ type: "image_url", image_url: { url: $("asked").src } }];
    if (question) content.push({ type: "text", text: question });
    const task = question ? "question" : "image_to_text";
    const body = JSON.stringify({ messages: [{ role: "user", content }], task });
    const headers = { "Content-Type": "application/json" };
    const answer = await (await ask("v1/chat/completions", { method: "POST", headers, body, signal: state.stop.signal })).json();
    const said = document.createElement("p");
    said.textContent = `${question || "Caption"}: ${answer.choices[0].message.content}`;
    $("answers").prepend(said);
  });
});

// --- a document that goes on -----------------------------------------------------------------------------------------

$("tell-form").addEventListener("submit", (event) => {
  event.preventDefault();
  working(event.target, async () => {
    const beginning = $("beginning").value;
    const body = JSON.stringify({ messages: [{ role: "user", content: beginning }], pictures: Number($("most").value), seed: seedOf("tell-seed") });
    const headers = { "Content-Type": "application/json" };
    const answer = await (await ask("v1/chat/completions", { method: "POST", headers, body, signal: state.stop.signal })).json();
    let said = beginning;
    $("told").replaceChildren();
    for (const part of answer.choices[0].message.parts) {
      if (part.type === "text") {
        said = `${said} ${part.text}`.trim();
        continue;
      }
      const card = new Card(said || "and then");
      card.progress.remove();
      card.image.src = part.image_url.url;
      card.image.alt = card.title;
      $("told").append(card.figure);
      said = "";
    }
    if (said) $("told").append(Object.assign(document.createElement("p"), { textContent: said }));
  });
});

// --- tabs ------------------------------------------------------------------------------------------------------------

const tabs = [...document.querySelectorAll("[role=tab]")];

function show(tab) {
  for (const one of tabs) {
    const chosen = one === tab;
    one.setAttribute("aria-selected", chosen);
    one.tabIndex = chosen ? 0 : -1;
    $(one.getAttribute("aria-controls")).hidden = !chosen;
  }
  tab.focus();
}

for (const tab of tabs) {
  tab.addEventListener("click", () => show(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const seen = tabs.filter((one) => !one.hidden);
    if (step) show(seen[(seen.indexOf(tab) + step + seen.length) % seen.length]);
  });
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.key = $("key").value;
  meet();
});

meet();

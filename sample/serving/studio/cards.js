// A picture that is being drawn, and what can be done with it once it is there.

import { frame, inWords, pointedAt } from "./boxes.js";
import { $, address, button, element, isSmall, state, tell } from "./server.js";

// [text of a button, the tab that must be there, what it does with a picture's file and caption]: other parts of the page
// add theirs.
export const actions = [];

export class Card {
  constructor(title, facts = state.facts) {
    const [width, height] = facts.size.split("x").map(Number);
    this.title = title;
    this.facts = facts;
    this.image = element("img", { alt: `${title}, being drawn` });
    this.image.style.setProperty("--shape", `${width} / ${height}`);
    this.image.classList.toggle("small", isSmall(width));
    this.progress = element("progress", { max: 1 });
    this.progress.setAttribute("aria-label", "Drawn so far");
    this.caption = element("figcaption", { textContent: title });
    this.boxes = element("div", { className: "boxes" });
    this.boxes.setAttribute("aria-hidden", "true"); // they are told in words too
    this.figure = element("figure", {}, element("div", { className: "framed" }, this.image, this.boxes), this.progress, this.caption);
  }

  event(event) {
    if (event.b64_json) this.image.src = address(event.b64_json);
    if (event.step !== undefined) this.progress.value = event.step / event.steps;
    if (event.record) this.finish(event.b64_json, event.record);
  }

  show(source) {
    this.progress.remove();
    this.image.src = source;
    this.image.alt = this.title;
  }

  finish(base64, record) {
    this.record = record;
    this.show(address(base64));
    const guidance = JSON.stringify(record.settings.guidance);
    const who = state.models.length > 1 ? `${record.model}, ` : "";
    this.caption.append(element("small", { textContent: `${who}seed ${record.seed}, guidance ${guidance}` }));
    const file = () => new Blob([bytes(base64)], { type: "image/png" });
    this.figure.append(element("div", { className: "row" },
      ...this.pointed(pointedAt(record.pointed)),
      ...again(record).map(([name, text]) => button(name, () => copy(text(record, this.facts)))),
      button("Save", () => save(withText(bytes(base64), "unitok", JSON.stringify(record)), `${record.seed}.png`, "image/png")),
      ...actions.filter(([, tab]) => !$(tab).hidden).map(([name, , act]) => button(name, () => act(file(), record.caption)))));
  }

  // Tells where the model looked before it drew, and shows it.
  pointed(boxes) {
    if (boxes.length) this.caption.append(element("small", { textContent: `after a look at ${boxes.map((box, number) => this.inWords(box, number)).join(" and ")}` }));
    return this.frame(boxes);
  }

  inWords(box, number) {
    return inWords(box, number, ...this.facts.size.split("x").map(Number));
  }

  // Shows boxes over the picture; returns a button that hides them.
  frame(boxes) {
    if (!boxes.length) return [];
    frame(this.boxes, boxes);
    const made = button("Boxes", () => {
      this.boxes.hidden = !this.boxes.hidden;
      made.setAttribute("aria-pressed", String(!this.boxes.hidden));
    });
    made.setAttribute("aria-pressed", "true");
    return [made];
  }
}

// --- how to draw a picture again -------------------------------------------------------------------------------------

// Ways to make a picture: the command, the route, and the files that the route is sent.
const sampled = { command: (caption) => `sample ${caption}`, route: "generations", files: {} };
const edited = { command: (caption) => `edit PICTURE.png ${caption}`, route: "edits", files: { image: "PICTURE.png" } };
const filled = { command: (caption) => `inpaint PICTURE.png --mask MASK.png --caption ${caption}`, route: "edits", files: { image: "PICTURE.png", mask: "MASK.png" } };
const extended = { command: (caption) => `extend PICTURE.png --caption ${caption}`, route: "extensions", files: { image: "PICTURE.png" } };
const SIDES = ["left", "right", "top", "bottom"];

const wayOf = ({ source, made_from: from }) => (source ? edited : !from ? sampled : from.mask_sha256 ? filled : extended);
const again = (record) => [["Command", asCommand], ...(wayOf(record) === sampled ? [["Python", asPython]] : []), ["curl", asCurl]];
const sidesOf = (record) => (wayOf(record) === extended ? SIDES.map((side) => [side, record.made_from[side]]) : []);

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

function given(record, facts) {
  return Object.entries(record.settings).filter(([name, value]) => JSON.stringify(value) !== JSON.stringify(facts.settings[name]));
}

function asCommand(record, facts) {
  const word = { string: quoted, object: (value) => quoted(JSON.stringify(value)) };
  const options = [...sidesOf(record), ...given(record, facts)].map(([name, value]) => ` --${name} ${(word[typeof value] ?? String)(value)}`);
  return `unitok ${wayOf(record).command(quoted(record.caption))} --model MODEL --n 1 --seed ${record.seed}${options.join("")} --out drawn`;
}

function asCurl(record, facts) {
  const named = state.models.length > 1 ? { model: record.model } : {};
  const { route, files } = wayOf(record);
  const fields = { prompt: record.caption, seed: record.seed, ...named, ...Object.fromEntries([...sidesOf(record), ...given(record, facts)]) };
  const key = state.key ? " -H 'Authorization: Bearer KEY'" : "";
  const head = `curl -s ${location.origin}/v1/images/${route}${key}`;
  if (!files.image) return `${head} -H 'Content-Type: application/json' -d ${quoted(JSON.stringify(fields))}`;
  const sent = Object.entries(files).map(([name, file]) => ` -F ${name}=@${file}`);
  const said = Object.entries(fields).flatMap(([name, value]) => [value].flat().map((one) => ` --form-string ${quoted(`${name}=${one}`)}`));
  return head + [...sent, ...said].join("");
}

function asPython(record, facts) {
  const python = (value) => JSON.stringify(value).replace(/\btrue\b/g, "True").replace(/\bfalse\b/g, "False").replace(/\bnull\b/g, "None");
  const options = given(record, facts).map(([name, value]) => `${name}=${python(value)}`).join(", ");
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

// --- files -----------------------------------------------------------------------------------------------------------

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

export function save(parts, name, type) {
  const link = element("a", { href: URL.createObjectURL(new Blob(parts, { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// A picture may be dropped wherever a file can be chosen.
for (const input of document.querySelectorAll("input[type=file]")) {
  const place = input.closest("section");
  place.addEventListener("dragover", (event) => event.preventDefault());
  place.addEventListener("drop", (event) => {
    event.preventDefault();
    if (!event.dataTransfer.files.length) return;
    input.files = event.dataTransfer.files;
    input.dispatchEvent(new Event("change"));
  });
}

// A picture that is changed: a part is drawn anew, a side is added, or an instruction is followed.

import { Card, actions, save } from "./cards.js";
import { $, Refused, ask, asking, isSmall, seedOf, state, stream, tell, working } from "./server.js";
import { show } from "./tabs.js";

let source = null;

export function offerChanging() {
  $("instruct").hidden = !state.facts.tasks.includes("edit");
  const [width, height] = state.facts.size.split("x").map(Number);
  $("add-right").value = $("add-right").value || Math.round(width / 2);
  for (const [side, most] of [["left", width], ["right", width], ["top", height], ["bottom", height]]) $(`add-${side}`).max = 4 * most;
}

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
  $("canvases").classList.toggle("small", isSmall(picture.width));
  $("brush").max = Math.max(2, Math.round(Math.max(picture.width, picture.height) / 2));
  $("brush").value = Math.max(1, Math.round(Math.max(picture.width, picture.height) / 8));
  $("easel").hidden = false;
  source = blob;
  if (caption !== undefined) $("wish").value = caption;
  show($("tab-change"));
}

actions.push(["Change", "tab-change", take]);
$("file").addEventListener("change", () => $("file").files[0] && take($("file").files[0]));

// --- what is painted -------------------------------------------------------------------------------------------------

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

// The mask as a file, for the API and for `unitok inpaint`: white where it is drawn anew.
async function maskFile() {
  const from = $("mask"), painted = from.getContext("2d").getImageData(0, 0, from.width, from.height);
  let any = false;
  for (let at = 0; at < painted.data.length; at += 4) {
    const marked = painted.data[at + 3] > 127, value = marked ? 255 : 0;
    any ||= marked;
    painted.data.set([value, value, value, 255], at);
  }
  if (!any) throw new Refused("Nothing is painted: paint what is to be drawn anew, or mark a box.");
  const canvas = new OffscreenCanvas(from.width, from.height);
  canvas.getContext("2d").putImageData(painted, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}

$("save-mask").addEventListener("click", () => maskFile().then((file) => save([file], "mask.png", "image/png"), (error) => tell(error.message)));

// --- what is asked ---------------------------------------------------------------------------------------------------

working($("change-form"), async (what) => {
  if (!source) throw new Refused("Choose a picture first, or draw one and press Change.");
  const prompt = $("wish").value, n = Number($("change-count").value);
  const fields = { image: source, prompt, n, seed: seedOf("change-seed") };
  if (what === "fill") fields.mask = await maskFile();
  const cards = Array.from({ length: n }, () => new Card(prompt));
  $("changed").replaceChildren(...cards.map((card) => card.figure));
  if (what === "extend") return extend(fields, cards);
  await stream("v1/images/edits", asking({ ...fields, stream: true, partial_images: 16 }), cards);
});

async function extend(fields, cards) {
  for (const side of ["left", "right", "top", "bottom"]) fields[side] = Number($(`add-${side}`).value);
  const { data, size } = await (await ask("v1/images/extensions", asking(fields))).json();
  for (const [place, { b64_json, record }] of data.entries()) {
    cards[place].image.style.setProperty("--shape", size.replace("x", " / "));
    cards[place].finish(b64_json, record);
  }
}

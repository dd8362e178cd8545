// The codes of a picture: what the model thinks of them, and what the image tokenizer makes of it.

import { actions } from "./cards.js";
import { $, Refused, address, ask, asking, element, isSmall, state, working } from "./server.js";
import { show } from "./tabs.js";

const MOST_PATCHES = 12;

// Codes as a grid of buttons over a picture. A code that is pressed shows its patch, and those of the same code.
function showGrid(place, told, [rows, columns], codes, picture, describe, paint) {
  const patches = told.nextElementSibling, whole = Object.assign(new Image(), { src: picture });
  patches.replaceChildren();
  const cells = codes.map((code, at) => {
    const cell = document.createElement("button");
    cell.type = "button";
    cell.dataset.code = code;
    cell.title = describe(at);
    cell.setAttribute("aria-label", `Row ${Math.floor(at / columns) + 1}, column ${(at % columns) + 1}: ${cell.title}`);
    paint(cell, at);
    cell.addEventListener("click", () => {
      const same = cells.filter((one) => one.dataset.code === cell.dataset.code);
      for (const one of cells) one.classList.toggle("same", same.includes(one));
      const first = [cell, ...same.filter((one) => one !== cell)].slice(0, MOST_PATCHES).map((one) => cells.indexOf(one));
      patches.replaceChildren(...first.map((one) => patch(whole, one, rows, columns)));
      told.textContent = `${cell.getAttribute("aria-label")}. It stands at ${same.length} of ${cells.length} places.`;
    });
    return cell;
  });
  const [width, height] = state.facts.size.split("x").map(Number);
  place.style.gridTemplate = `repeat(${rows}, 1fr) / repeat(${columns}, 1fr)`;
  place.style.aspectRatio = `${width} / ${height}`;
  place.style.backgroundImage = `url(${picture})`;
  place.classList.toggle("small", isSmall(width));
  place.replaceChildren(...cells);
}

// What stands in a picture where a code stands.
function patch(picture, at, rows, columns) {
  const width = picture.naturalWidth / columns, height = picture.naturalHeight / rows;
  const canvas = element("canvas", { width: Math.max(1, Math.round(width)), height: Math.max(1, Math.round(height)) });
  const row = Math.floor(at / columns), column = at % columns;
  canvas.getContext("2d").drawImage(picture, column * width, row * height, width, height, 0, 0, canvas.width, canvas.height);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `What stands at row ${row + 1}, column ${column + 1}`);
  return canvas;
}

// Puts the code into a cell if there is room for it.
const write = (codes, columns) => (cell, at) => (cell.textContent = columns <= 16 ? codes[at] : "");

// Chooses among grids that lie one behind the other; returns the chosen one and its part of a list.
function offerGrids(select, grids) {
  select.replaceChildren(...grids.map(([rows, columns], number) => new Option(`${rows} x ${columns}`, number)));
  select.value = grids.length - 1;
  select.parentElement.hidden = grids.length < 2;
}

function chosenGrid(select, grids) {
  const which = Number(select.value), [rows, columns] = grids[which];
  const begin = grids.slice(0, which).reduce((sum, [down, across]) => sum + down * across, 0);
  return { grid: grids[which], part: (values) => values.slice(begin, begin + rows * columns) };
}

const different = (codes) => `${new Set(codes).size} different codes at ${codes.length} places`;

// --- what the model thinks -------------------------------------------------------------------------------------------

const inside = { picture: null, address: "", found: null };

actions.push(["Look", "tab-look", (blob, caption) => {
  inside.picture = blob;
  $("look-caption").value = caption;
  show($("tab-look"));
  $("look-form").requestSubmit();
}]);

$("look-file").addEventListener("change", () => {
  [inside.picture] = $("look-file").files;
});

const ofWords = () => ["words", "attention"].includes($("shown").value);

working($("look-form"), async () => {
  if (!inside.picture) throw new Refused("Choose a picture first, or draw one and press Look.");
  const words = ofWords();
  const fields = { image: inside.picture, prompt: $("look-caption").value, words };
  inside.found = await (await ask("v1/images/inspections", asking(fields))).json();
  URL.revokeObjectURL(inside.address);
  inside.address = URL.createObjectURL(inside.picture);
  offerGrids($("map"), inside.found.grids);
  if (words) $("word").replaceChildren(...inside.found.words.map(({ word }, number) => new Option(word, number)));
  showCodes();
});

$("shown").addEventListener("change", () => {
  $("word-label").hidden = !ofWords();
  if (!inside.found) return;
  if (ofWords()) $("look-form").requestSubmit(); // each word takes a pass of the model
  else showCodes();
});
for (const id of ["word", "map"]) $(id).addEventListener("change", () => inside.found && showCodes());

function showCodes() {
  const { grids, words } = inside.found, { grid, part } = chosenGrid($("map"), grids), what = $("shown").value;
  const [codes, probabilities, entropies] = ["codes", "probabilities", "entropies"].map((name) => part(inside.found[name]));
  const worst = Math.max(...inside.found.entropies, 1e-9);
  const most = Math.max(1e-9, ...(words ?? []).flatMap(({ bits }) => bits.map(Math.abs))); // words can be compared
  const worth = what === "words" && words?.length ? words[Number($("word").value)] : null, bits = worth ? part(worth.bits) : null;
  const look = what === "attention" && words?.length ? words[Number($("word").value)] : null;
  const shares = look?.attention ? part(look.attention) : null, largest = Math.max(1e-9, ...(words ?? []).flatMap((one) => one.attention ?? []));
  const describe = (at) => {
    const said = `code ${codes[at]}, probability ${(100 * probabilities[at]).toPrecision(2)} %, entropy ${entropies[at].toFixed(2)} bits`;
    if (shares) return `${said}, ${(100 * shares[at]).toPrecision(2)} % of its attention on "${look.word}"`;
    return bits ? `${said}, ${bits[at].toFixed(2)} bits likelier with "${worth.word}"` : said;
  };
  const amount = { probabilities: (at) => 1 - probabilities[at], entropies: (at) => entropies[at] / worst, words: (at) => (bits?.[at] ?? 0) / most, attention: (at) => (shares?.[at] ?? 0) / largest }[what];
  const heat = (cell, at) => {
    const colour = ofWords() && amount(at) > 0 ? "0 90 220" : "220 20 60"; // blue: likelier with the word, red: less likely
    cell.style.backgroundColor = `rgb(${colour} / ${(0.85 * Math.abs(amount(at))).toFixed(3)})`;
    if (bits && grid[1] <= 16 && Math.abs(bits[at]) >= 0.1) cell.textContent = (bits[at] > 0 ? "+" : "") + bits[at].toFixed(1);
  };
  showGrid($("codes"), $("told-code"), grid, codes, inside.address, describe, what === "codes" ? write(codes, grid[1]) : heat);
  const mean = probabilities.reduce((sum, one) => sum - Math.log2(Math.max(one, 1e-12)), 0) / codes.length;
  const sum = bits?.reduce((one, other) => one + other, 0);
  $("told-code").textContent = what === "attention" ? toldOfAttention(look, shares) : bits
    ? `With "${worth.word}" these codes are together ${sum.toFixed(2)} bits likelier than by the caption without it. Blue: likelier, red: less likely.`
    : `${different(codes)}; on average ${mean.toFixed(2)} bits a code by this caption.`;
}

function toldOfAttention(look, shares) {
  if (!look) return "This caption has no word.";
  if (!shares) return "This model's attention to words is not shown: its trunk is another one, or it draws by classes.";
  const mean = shares.reduce((one, other) => one + other, 0) / shares.length;
  return `Where these codes are predicted, the model gives "${look.word}" ${(100 * mean).toPrecision(2)} % of its attention, the mean over heads and layers. The darker, the more.`;
}

// --- what the image tokenizer makes of it ----------------------------------------------------------------------------

let made = null;

$("tokens-file").addEventListener("change", () => $("tokens-file").files[0] && $("tokens-form").requestSubmit());

working($("tokens-form"), async () => {
  const [file] = $("tokens-file").files;
  if (!file) throw new Refused("Choose a picture first.");
  made = await (await ask("v1/images/tokenizations", asking({ image: file }))).json();
  for (const name of ["picture", "reconstruction", "error"]) $(`tokens-${name}`).src = address(made[name].b64_json);
  $("tokens-quality").textContent = made.psnr === null ? "Nothing differs." : `PSNR ${made.psnr} dB`;
  $("tokens-largest").textContent = `White: a difference of ${made.largest_error} of 255`;
  for (const image of $("tokens-shown").querySelectorAll("img")) image.classList.toggle("small", isSmall(Number(state.facts.size.split("x")[0])));
  $("first").max = made.first.length - 1;
  $("first").value = made.first.length - 1;
  offerGrids($("tokens-map"), made.grids);
  $("tokens-shown").hidden = false;
  showFirst();
  showMade();
});

$("first").addEventListener("input", showFirst);
$("tokens-map").addEventListener("change", () => made && showMade());

function showFirst() {
  const { codes, b64_json } = made.first[Number($("first").value)];
  $("tokens-first").src = address(b64_json);
  $("first-told").textContent = `${codes} of ${made.codes.length}`;
  $("first").setAttribute("aria-valuetext", $("first-told").textContent);
}

function showMade() {
  const { grid, part } = chosenGrid($("tokens-map"), made.grids), codes = part(made.codes);
  showGrid($("tokens-codes"), $("tokens-told"), grid, codes, address(made.reconstruction.b64_json), (at) => `code ${codes[at]}`, write(codes, grid[1]));
  $("tokens-told").textContent = `${different(codes)}.`;
}

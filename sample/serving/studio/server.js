// What all parts of the page share: the server, what it said of its models, and how trouble is told.

export const $ = (id) => document.getElementById(id);
export const state = { models: [], facts: null, key: "", stop: null, meet: null };

// Whether it is a model; an image tokenizer alone draws nothing.
export const draws = (facts) => facts.objective !== null;

export class Refused extends Error {}

export async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (state.key) headers.Authorization = `Bearer ${state.key}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server does not answer. Start it again with `unitok studio …`, then try once more.");
  }
  if (answer.ok) return answer;
  if (answer.status === 401) $("key-form").hidden = false;
  const body = await answer.json().catch(() => ({}));
  throw new Refused(body.error?.message ?? `The server answered ${answer.status}.`);
}

// A request with fields, which names the model; of fields with a file a form is made.
export function asking(fields, facts = state.facts) {
  const named = Object.entries({ ...fields, model: facts.id });
  const options = { method: "POST", signal: state.stop.signal };
  if (!named.some(([, value]) => value instanceof Blob)) {
    return { ...options, headers: { "Content-Type": "application/json" }, body: JSON.stringify(Object.fromEntries(named)) };
  }
  const body = new FormData();
  for (const [name, value] of named) {
    if (value instanceof Blob) body.append(name, value, `${name}.png`);
    else body.append(name, value);
  }
  return { ...options, body };
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

export async function stream(path, options, cards) {
  for await (const event of events(await ask(path, options))) {
    if (event.type === "error") throw new Refused(event.error?.message ?? "The server failed.");
    cards[event.picture]?.event(event);
  }
}

export function tell(message) {
  $("trouble").textContent = message ?? "";
  $("trouble").hidden = !message;
}

// What a form's button does: one thing at a time, which can be stopped, and whose trouble is told.
export function working(form, act) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    tell();
    if (!state.facts) await state.meet(); // the server was away
    if (!state.facts) return;
    state.stop?.abort();
    state.stop = new AbortController();
    const stops = form.querySelectorAll(".stop"), mains = form.querySelectorAll(".main");
    stops.forEach((one) => (one.disabled = false));
    mains.forEach((one) => (one.disabled = true));
    try {
      await act(event.submitter?.value);
    } catch (error) {
      if (error.name !== "AbortError") tell(error.message);
      for (const progress of document.querySelectorAll("progress")) progress.closest("figure").remove();
    } finally {
      stops.forEach((one) => (one.disabled = true));
      mains.forEach((one) => (one.disabled = false));
    }
  });
  for (const one of form.querySelectorAll(".stop")) one.addEventListener("click", () => state.stop?.abort());
}

const chance = () => Math.floor(Math.random() * 2 ** 31);
export const seedOf = (id) => ($(id).value === "" ? chance() : Number($(id).value));

// --- elements --------------------------------------------------------------------------------------------------------

export function button(text, act) {
  const made = Object.assign(document.createElement("button"), { type: "button", textContent: text });
  made.addEventListener("click", () => act(made));
  return made;
}

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export const address = (base64) => `data:image/png;base64,${base64}`;

// Small pictures are shown with their pixels.
export const isSmall = (width) => width < 200;

// Fields for the settings of `unitok sample`; empty ones are the model's own.
export function settingFields(place, facts) {
  place.replaceChildren(...Object.entries(facts.settings).map(([name, own]) => {
    const field = element("input", { placeholder: JSON.stringify(own), size: 10 });
    field.dataset.setting = name;
    return element("label", {}, name.replaceAll("_", " "), field);
  }));
}

export function settingsOf(place) {
  const found = {};
  for (const field of place.querySelectorAll("input")) {
    if (!field.value.trim()) continue;
    try {
      found[field.dataset.setting] = JSON.parse(field.value);
    } catch {
      throw new Refused(`${field.dataset.setting} is ${field.value}: give a number, true or false, or a list such as [1, 2].`);
    }
  }
  return found;
}

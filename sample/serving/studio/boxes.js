// Boxes over a picture: [left, top, right, bottom] as shares of it, each with its number.

import { element } from "./server.js";

// What a record says of what the model pointed at before its value: boxes, alone or in a caption.
export const pointedAt = ({ boxes, named } = {}) => boxes ?? (named ?? []).filter(Array.isArray);

// Draws boxes into an element that lies over a picture.
export function frame(place, boxes) {
  place.replaceChildren(...boxes.map(([left, top, right, bottom], number) => {
    const made = element("span", {}, element("b", { textContent: number + 1 }));
    for (const [side, share] of Object.entries({ left, top, width: right - left, height: bottom - top })) made.style[side] = `${100 * share}%`;
    return made;
  }));
}

// A box in words: its number, and its sides in pixels.
export function inWords([left, top, right, bottom], number, width, height) {
  return `[${number + 1}] (${[left * width, top * height, right * width, bottom * height].map(Math.round).join(", ")})`;
}

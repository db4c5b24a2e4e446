"use strict";
// Small parts that the tabs are drawn of. Nothing here knows what is shown.

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(made.style, value);
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((each) => each !== null && each !== undefined));
  return made;
}

function note(text) {
  return element("p", { class: "note" }, text);
}

// A number with four digits that say something.
function number(value) {
  if (value === null || value === undefined) return "not finite";
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return size === 0 || size >= 0.001 ? String(Number(value.toPrecision(4))) : value.toExponential(2);
}

function fixed(value, digits) {
  return value === null ? "not finite" : value.toFixed(digits);
}

// A colour that carries on white and on black; share from 0 to 1.
function shade(share, colour = "0 137 123") {
  return `rgb(${colour} / ${Math.max(0, Math.min(1, share)) * 0.75})`;
}

// What cannot be seen in a token, made visible.
function visible(text) {
  return text.replaceAll("\n", "\u21b5").replaceAll("\t", "\u21e5").replaceAll(" ", "\u2423");
}

function table(head, rows) {
  const cell = (tag) => (each) => (each instanceof Node && each.tagName === "TD" ? each : element(tag, {}, each));
  return element(
    "div",
    { class: "scroll" },
    element(
      "table",
      {},
      element("thead", {}, element("tr", {}, ...head.map(cell("th")))),
      element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map(cell("td"))))),
    ),
  );
}

function bar(share, minus = false) {
  const width = `${Math.max(0, Math.min(1, share)) * 12}rem`;
  return element("span", { class: minus ? "bar minus" : "bar", style: { width } });
}

function choice(options, chosen) {
  const made = element("select", { onchange: () => chosen(made.value) });
  made.append(...options.map(([value, name]) => element("option", { value }, name)));
  return made;
}

// A box beside the pointer; words are asked for when it is over `target`, null shows none.
function tip(target, words) {
  const hide = () => document.querySelectorAll(".tip").forEach((each) => each.remove());
  target.addEventListener("mousemove", (event) => {
    hide();
    const text = words(event);
    if (text === null) return;
    const box = element("div", { class: "tip" }, text);
    document.body.append(box);
    const left = Math.min(event.clientX + 14, window.innerWidth - box.offsetWidth - 8);
    const below = event.clientY + 18;
    const fits = below + box.offsetHeight < window.innerHeight;
    box.style.left = `${Math.max(4, left)}px`;
    box.style.top = `${fits ? below : event.clientY - box.offsetHeight - 12}px`;
  });
  target.addEventListener("mouseleave", hide);
  return target;
}

// The lower triangle of a matrix, rows of values from 0 to `whole`, `scale` pixels a cell.
function drawTriangle(rows, whole, scale) {
  const canvas = element("canvas", { width: rows.length * scale, height: rows.length * scale });
  const brush = canvas.getContext("2d");
  rows.forEach((row, y) =>
    row.forEach((value, x) => {
      brush.fillStyle = `rgb(0 137 123 / ${value / whole})`;
      if (value > 0) brush.fillRect(x * scale, y * scale, scale, scale);
    }),
  );
  return canvas;
}

// Buttons, and below them what the chosen one draws; each is drawn when it is first looked at.
function tabs(parts) {
  const below = element("div", { role: "tabpanel" });
  const drawn = new Map();
  const buttons = parts.map(([name, draw]) => {
    const open = () => {
      buttons.forEach((each) => each.setAttribute("aria-selected", String(each === button)));
      if (!drawn.has(name)) drawn.set(name, element("section", {}, ...draw()));
      below.replaceChildren(drawn.get(name));
    };
    const button = element("button", { role: "tab", type: "button", onclick: open }, name);
    return button;
  });
  const whole = element("div", {}, element("div", { class: "tabs", role: "tablist" }, ...buttons), below);
  buttons[0].click();
  return whole;
}

"use strict";

// Elements and numbers.

const byId = id => document.getElementById(id);
const on = (id, event, action) => byId(id).addEventListener(event, action);
const integer = number => number.toLocaleString("en");
const digits = number => String(Number(number.toPrecision(4)));
const shortName = name => name.slice(name.lastIndexOf("/") + 1) || name;

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value; else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function svg(tag, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

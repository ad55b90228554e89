"use strict";
/* Small helpers for pages that are built from elements. */

function element(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function makeButton(words, action, id = "") {
  const node = element("button", { type: "button", ...(id && { id }) }, words);
  node.addEventListener("click", action);
  return node;
}

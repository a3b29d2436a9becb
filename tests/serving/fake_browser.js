// Runs the script of the page with as little of a browser as it needs, and prints what it shows.
// Usage: node fake_browser.js SCRIPT ADDRESS ADAPTER TEXT...
"use strict";
const fs = require("fs");
const [script, address, adapter, ...texts] = process.argv.slice(2);
// The text is changed before its answer is there.
const early = Boolean(process.env.CHANGE_EARLY);

class Element {
  constructor(tag) {
    this.tag = tag;
    this.children = [];
    this.attributes = {};
    this.listeners = {};
    this.textContent = "";
    this.value = "";
  }
  setAttribute(name, value) { this.attributes[name] = value; }
  append(child) { this.children.push(child); }
  replaceChildren() { this.children = []; }
  addEventListener(name, listener) { this.listeners[name] = listener; }
  all() { return [this, ...this.children.flatMap((child) => child.all())]; }
}

const fixed = {};
for (const selector of ["form", "#choice", "#adapter", "#columns", "button", "output"]) {
  fixed[selector] = new Element(selector);
}
global.document = {
  createElement: (tag) => new Element(tag),
  querySelector: (selector) => fixed[selector]
    || fixed["#columns"].all().find((element) => "#" + element.attributes.id === selector),
};
const plainFetch = fetch;
global.fetch = (path, options) => plainFetch(address + "/" + path, options);

async function main() {
  new Function(fs.readFileSync(script, "utf8"))();
  while (!fixed["#columns"].children.length) {
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  fixed["#adapter"].value = adapter;
  fixed["#adapter"].listeners.change();
  const areas = fixed["#columns"].children.filter((element) => element.tag === "textarea");
  areas.forEach((area, number) => { area.value = texts[number]; });
  const asking = fixed.form.listeners.submit({preventDefault() {}});
  if (early) {
    fixed["#columns"].listeners.input();
  }
  await asking;
  const shown = fixed.output.all().map((element) => [element.tag, String(element.textContent)]);
  const isHidden = fixed["#choice"].hidden;
  fixed["#columns"].listeners.input();
  const left = fixed.output.children.length;
  const options = fixed["#adapter"].children.map((element) => element.textContent);
  console.log(JSON.stringify({options, shown, columns: areas.length, isHidden, left}));
}

main();

"use strict";
/* Elements, numbers and scales. Text always enters the page as a text node: nothing here parses HTML. */
const draw = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const NARROW = "\u202f";
  const HIDDEN = /[\p{C}\p{Zl}\p{Zp}]/u;

  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }
  const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

  /* Characters that show nothing by themselves are written out, so that a bidi override or a bell can't hide. */
  function appendVisible(parent, text) {
    let plain = "";
    for (const character of text) {
      if (character === "\n" || character === "\t" || !HIDDEN.test(character)) {
        plain += character;
        continue;
      }
      if (plain) parent.append(plain);
      plain = "";
      const code = "U+" + character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
      parent.append(el("span", { class: "hiddenchar" }, code));
    }
    if (plain) parent.append(plain);
    return parent;
  }

  /* `text` with every occurrence of `query` marked. */
  function appendMarked(parent, text, query) {
    if (!query) return appendVisible(parent, text);
    const lower = text.toLowerCase();
    if (lower.length !== text.length) return appendVisible(parent, text);
    let from = 0;
    for (let at = lower.indexOf(query); at >= 0; at = lower.indexOf(query, from)) {
      appendVisible(parent, text.slice(from, at));
      parent.append(appendVisible(el("mark"), text.slice(at, at + query.length)));
      from = at + query.length;
    }
    return appendVisible(parent, text.slice(from));
  }

  const minus = (text) => text.replace("-", "\u2212");
  const superscript = (n) => [...String(n)].map((c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]).join("");

  function plain(value) {
    const size = Math.abs(value);
    if (size === 0) return "0";
    if (size >= 1e6) return minus((value / 1e6).toPrecision(3)) + NARROW + "M";
    if (size >= 1e4) return minus((value / 1e3).toPrecision(3)) + NARROW + "k";
    if (size >= 100) return minus(value.toFixed(0));
    if (size >= 0.001) return minus(String(Number(value.toPrecision(3))));
    const power = Math.floor(Math.log10(size));
    return minus(String(Number((value / 10 ** power).toFixed(1)))) + "×10" + superscript(power);
  }
  function percent(value) {
    const shown = value * 100;
    const digits = shown === 0 || Math.abs(shown) >= 99.95 ? 0 : Math.abs(shown) < 1 ? 2 : 1;
    return minus(shown.toFixed(digits)) + NARROW + "%";
  }
  const format = (value, unit) => (value === null || value === undefined ? "–" : unit === "%" ? percent(value) : plain(value));

  /* Tick labels: one precision for the whole axis. */
  function tickLabels(ticks, unit, log) {
    if (log) return ticks.map((t) => (t >= 0.01 && t < 1e4 ? plain(t) : "10" + superscript(Math.round(Math.log10(t)))));
    const gap = ticks.length > 1 ? Math.abs(ticks[1] - ticks[0]) : Math.abs(ticks[0]) || 1;
    const scale = unit === "%" ? 100 : 1;
    const largest = Math.max(...ticks.map(Math.abs));
    if (unit !== "%" && (largest >= 1e4 || gap < 1e-3)) return ticks.map((t) => plain(Number(t.toPrecision(6))));
    // As many decimals as tell the gap exactly: 2.5 needs one more than 2 or 5.
    let digits = 0;
    while (digits < 8 && Math.abs(gap * scale * 10 ** digits - Math.round(gap * scale * 10 ** digits)) > 1e-6) digits++;
    return ticks.map((t) => minus((t * scale).toFixed(digits)) + (unit === "%" ? NARROW + "%" : ""));
  }

  function linearTicks(low, high, wanted) {
    const rough = (high - low) / wanted;
    const power = 10 ** Math.floor(Math.log10(rough));
    const gap = [1, 2, 2.5, 5, 10].map((m) => m * power).find((m) => m >= rough * 0.999);
    const ticks = [];
    for (let i = Math.ceil(low / gap - 1e-6); i * gap <= high + gap * 1e-6; i++) ticks.push(i * gap);
    return ticks;
  }
  function logTicks(low, high) {
    const first = Math.ceil(Math.log10(low) - 1e-9);
    const last = Math.floor(Math.log10(high) + 1e-9);
    const stride = Math.max(1, Math.ceil((last - first) / 4));
    const ticks = [];
    for (let p = first; p <= last; p += stride) ticks.push(10 ** p);
    return ticks;
  }

  /* Centred moving average with triangular weights, over the values that are there. */
  function smooth(values, half, log) {
    if (half < 1) return values;
    return values.map((middle, i) => {
      if (middle === null) return null;
      let sum = 0, weight = 0;
      for (let j = Math.max(0, i - half); j <= Math.min(values.length - 1, i + half); j++) {
        if (values[j] === null || (log && values[j] <= 0)) continue;
        const w = half + 1 - Math.abs(i - j);
        sum += w * (log ? Math.log(values[j]) : values[j]);
        weight += w;
      }
      return weight ? (log ? Math.exp(sum / weight) : sum / weight) : null;
    });
  }

  return { el, svg, appendVisible, appendMarked, format, tickLabels, linearTicks, logTicks, smooth };
})();

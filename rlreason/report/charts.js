/* Charts of one stage over its steps. All charts of a stage share one cursor. */
const charts = (() => {
  const { el, svg, format, tickLabels, linearTicks, logTicks, smooth } = draw;
  const PLOT = 132, TOP = 8, BOTTOM = 32, LEFT = 46;

  /* Which step all charts of a stage point at; null: the last one. `axis`: where each step is drawn, in what unit. */
  function cursor(steps, axis) {
    const members = [];
    return {
      steps,
      axis: axis || { unit: "step", at: steps, say: (i) => `step ${steps[i]}` },
      index: null,
      painters: [],
      /* Draw all charts now that they are on the page; each draws itself again when its width changes. */
      paint() { for (const one of this.painters) one(); },
      join(member) { members.push(member); },
      set(index) {
        this.index = index;
        for (const member of members) member(index);
      },
    };
  }

  const present = (values) => values.filter((v) => v !== null && v !== undefined);

  /* Half the width of the moving average: none for short stages, about a fifteenth of long ones. */
  const halfWidth = (n) => (n < 24 ? 0 : Math.max(2, Math.round(n / 30)));

  /* Computes what is drawn: per series the raw and the smoothed values, and for stacks the edges of each area. */
  function prepare(spec, count) {
    // On a log scale zeros and what rounding left below zero are gaps; where nothing is positive the scale is linear.
    const log = spec.log && spec.series.some((s) => present(s.values).some((v) => v > 0));
    const half = halfWidth(count);
    const series = spec.series.map((s) => {
      const known = present(s.values);
      const sparse = !s.join && (known.length < count / 2 || known.length < 8);
      const values = log ? s.values.map((v) => (v > 0 ? v : null)) : s.values;
      return { ...s, sparse, raw: values, line: sparse ? values : smooth(values, half, log) };
    });
    if (spec.form !== "stack") return { log, series };
    let below = new Array(count).fill(0);
    const sums = below.map((_, i) => series.reduce((sum, s) => sum + (s.line[i] || 0), 0));
    for (const s of series) {
      const divide = spec.share ? (v, i) => (sums[i] ? v / sums[i] : 0) : (v) => v;
      s.low = below;
      s.high = below.map((v, i) => v + divide(s.line[i] || 0, i));
      below = s.high;
    }
    return { log: false, series };
  }

  function domain(spec, ready) {
    if (spec.share) return [0, 1];
    const values = ready.series.flatMap((s) => (s.high ? s.high : present(s.raw)));
    let low = values.length ? Math.min(...values) : 0;
    let high = values.length ? Math.max(...values) : 1;
    if (ready.log) {
      const down = 10 ** Math.floor(Math.log10(low)), up = 10 ** Math.ceil(Math.log10(high));
      return [down, up > down ? up : down * 10];
    }
    if (spec.form === "stack" || spec.zero || (low >= 0 && low < 0.4 * high)) low = Math.min(0, low);
    if (spec.unit === "%" && high > 0.5 && high <= 1) high = 1;
    if (low === high) { const pad = Math.abs(low) * 0.1 || 1; low -= low === 0 ? 0 : pad; high += pad; }
    const pad = (high - low) * 0.04;
    return [low === 0 ? 0 : low - pad, spec.unit === "%" && high === 1 ? 1 : high + pad];
  }

  /* Pushes labels apart so that none covers another, and keeps them inside the plot. */
  function spread(labels) {
    labels.sort((a, b) => a.y - b.y);
    for (let i = 1; i < labels.length; i++) labels[i].y = Math.max(labels[i].y, labels[i - 1].y + 12);
    let limit = TOP + PLOT + 3;
    for (let i = labels.length - 1; i >= 0; i--) {
      labels[i].y = Math.min(labels[i].y, limit);
      limit = labels[i].y - 12;
    }
  }

  function path(values, x, y) {
    let text = "", pen = "M";
    values.forEach((value, i) => {
      if (value === null) { pen = "M"; return; }
      text += pen + x(i).toFixed(1) + " " + y(value).toFixed(1);
      pen = "L";
    });
    return text;
  }

  const joined = (values, x, y) => {
    let text = "";
    values.forEach((v, i) => { if (v !== null) text += (text ? "L" : "M") + x(i).toFixed(1) + " " + y(v).toFixed(1); });
    return text;
  };

  function axes(root, frame, spec, log) {
    const { width, right, y, low, high, axis } = frame;
    const ticks = log ? logTicks(low, high) : linearTicks(low, high, 4);
    const labels = tickLabels(ticks, spec.unit, log);
    ticks.forEach((tick, i) => {
      const at = y(tick);
      root.append(svg("line", { x1: LEFT, x2: width - right, y1: at, y2: at, class: tick === low || tick === 0 ? "base" : "gridline" }));
      root.append(svg("text", { x: LEFT - 6, y: at + 3.5, "text-anchor": "end" }, labels[i]));
    });
    const first = axis.at[0], last = axis.at[axis.at.length - 1];
    const wanted = first === last ? [first] : linearTicks(first, last, (width - LEFT - right) / 62);
    const marks = axis.unit === "step" ? wanted.filter(Number.isInteger) : wanted;
    const bottom = TOP + PLOT;
    for (const step of marks) {
      const at = frame.place(step);
      root.append(svg("line", { x1: at, x2: at, y1: bottom, y2: bottom + 4, class: "base" }));
      root.append(svg("text", { x: at, y: bottom + 15, "text-anchor": "middle" }, axis.unit === "step" ? String(step) : format(step, "")));
    }
    root.append(svg("line", { x1: LEFT, x2: width - right, y1: bottom, y2: bottom, class: "base" }));
    root.append(svg("text", { x: width - right, y: bottom + 28, "text-anchor": "end" }, axis.unit));
  }

  function marks(root, frame, ready, spec) {
    const { x, y, steps } = frame;
    const labels = [];
    for (const s of ready.series) {
      const style = `--c:var(${s.color})`;
      const lastKnown = s.line.findLastIndex((v) => v !== null);
      if (lastKnown < 0) continue;
      let end = s.line[lastKnown];
      if (spec.form === "stack") {
        const back = s.low.map((v, i) => [i, v]).reverse();
        const text = path(s.high, x, y) + back.map(([i, v]) => `L${x(i).toFixed(1)} ${y(v).toFixed(1)}`).join("") + "Z";
        root.append(svg("path", { d: text, class: "area", style }));
        end = (s.low[lastKnown] + s.high[lastKnown]) / 2;
        if (s.high[lastKnown] - s.low[lastKnown] <= 0 && s.high.every((v, i) => v === s.low[i])) continue;
      } else {
        const trace = s.sparse || s.join ? joined : path;
        if (!s.sparse && halfWidth(steps.length)) root.append(svg("path", { d: trace(s.raw, x, y), class: "raw", style }));
        root.append(svg("path", { d: trace(s.line, x, y), class: "smooth", style }));
        if (s.sparse) s.line.forEach((v, i) => { if (v !== null) root.append(svg("circle", { cx: x(i), cy: y(v), r: 2.6, class: "point", style })); });
      }
      labels.push({ y: y(end) + 4, name: s.name, style });
    }
    if (ready.series.length < 2) return;
    spread(labels);
    for (const label of labels) {
      root.append(svg("text", { x: frame.width - frame.right + 8, y: label.y, class: "end", style: label.style }, label.name));
    }
  }

  function geometry(width, spec, ready, { steps, axis }) {
    const [low, high] = domain(spec, ready);
    const longest = ready.series.length > 1 ? Math.max(...ready.series.map((s) => s.name.length)) : 0;
    const right = longest ? Math.min(106, 14 + longest * 6.3) : 12;
    const first = axis.at[0], span = axis.at[axis.at.length - 1] - first || 1;
    const place = (at) => LEFT + ((at - first) / span) * (width - LEFT - right);
    const t = ready.log ? (v) => Math.log(v / low) / Math.log(high / low) : (v) => (v - low) / (high - low);
    return { width, right, low, high, steps, axis, place, x: (i) => place(axis.at[i]), y: (v) => TOP + PLOT * (1 - Math.max(0, Math.min(1, t(v)))) };
  }

  /* The value of a series at a step; a sparse series answers with its last measurement and says when that was. */
  function valueAt(s, index, axis, unit) {
    if (s.values[index] !== null) return format(s.values[index], unit);
    if (!s.sparse && !s.join) return "–";
    const last = s.values.slice(0, index + 1).findLastIndex((v) => v !== null);
    return last < 0 ? "–" : `${format(s.values[last], unit)} (${axis.say(last)})`;
  }

  function readout(box, spec, ready, axis, index) {
    box.replaceChildren(el("b", null, axis.say(index)));
    const parts = [];
    for (const s of ready.series) {
      const whole = spec.share ? ready.series.reduce((sum, one) => sum + (one.values[index] || 0), 0) : 0;
      const value = spec.share ? format(whole ? (s.values[index] || 0) / whole : 0, "%") : valueAt(s, index, axis, spec.unit);
      const label = ready.series.length > 1 ? s.name + " " : "";
      parts.push(`${label}${value}`);
      box.append(el("i", { style: `--c:var(${s.color})` }, label, el("b", null, value)));
    }
    return `${axis.say(index)}: ${parts.join(", ")}`;
  }

  function summary(spec, ready, axis) {
    const spans = ready.series.map((s) => {
      const known = s.values.map((v, i) => [v, i]).filter(([v]) => v !== null);
      const [from, to] = [known[0], known[known.length - 1]];
      return `${s.name} from ${format(from[0], spec.unit)} at ${axis.say(from[1])} to ${format(to[0], spec.unit)} at ${axis.say(to[1])}`;
    });
    return `${spec.title}, ${spec.axis}: ${spans.join("; ")}`;
  }

  function hoverDots(layer, frame, ready, spec, index) {
    const at = frame.x(index);
    layer.replaceChildren(svg("line", { x1: at, x2: at, y1: TOP, y2: TOP + PLOT, class: "cursor" }));
    if (spec.form === "stack") return;
    for (const s of ready.series) {
      const value = s.raw[index];
      if (value !== null) layer.append(svg("circle", { cx: at, cy: frame.y(value), r: 3.6, class: "hover", style: `--c:var(${s.color})` }));
    }
  }

  const KEYS = { ArrowLeft: -1, ArrowRight: 1, PageUp: 10, PageDown: -10, Home: -Infinity, End: Infinity };

  /* A figure with caption, readout and plot. It draws itself again when its width changes. */
  function chart(spec, shared) {
    const steps = shared.steps, last = steps.length - 1;
    const ready = prepare(spec, steps.length);
    const box = el("div", { class: "readout" });
    const root = svg("svg", {
      role: "slider", tabindex: 0, "aria-label": summary(spec, ready, shared.axis), "aria-orientation": "horizontal",
      "aria-valuemin": steps[0], "aria-valuemax": steps[last],
    });
    const scaleNote = ready.log ? ", log scale" : "";
    const figure = el("figure", { class: "chart" }, el("figcaption", null, spec.title + " ", el("span", null, spec.axis + scaleNote)), box, root);
    const layer = svg("g", { "aria-hidden": "true" });
    let frame = null;

    function point(index) {
      const at = index === null ? last : index;
      root.setAttribute("aria-valuenow", steps[at]);
      root.setAttribute("aria-valuetext", readout(box, spec, ready, shared.axis, at));
      if (index === null || !frame) layer.replaceChildren();
      else hoverDots(layer, frame, ready, spec, index);
    }
    function paint() {
      const width = Math.round(figure.clientWidth);
      if (!width || (frame && frame.width === width)) return;
      frame = geometry(width, spec, ready, shared);
      root.setAttribute("viewBox", `0 0 ${width} ${TOP + PLOT + BOTTOM}`);
      root.replaceChildren();
      axes(root, frame, spec, ready.log);
      marks(root, frame, ready, spec);
      root.append(layer);
      point(shared.index);
    }
    function nearest(event) {
      const bounds = root.getBoundingClientRect();
      const at = ((event.clientX - bounds.left) / bounds.width) * frame.width;
      let best = 0;
      for (let i = 1; i <= last; i++) if (Math.abs(frame.x(i) - at) < Math.abs(frame.x(best) - at)) best = i;
      return best;
    }
    root.addEventListener("pointermove", (event) => frame && shared.set(nearest(event)));
    root.addEventListener("pointerleave", () => shared.set(null));
    root.addEventListener("blur", () => shared.set(null));
    root.addEventListener("keydown", (event) => {
      if (!(event.key in KEYS)) return;
      event.preventDefault();
      const from = shared.index === null ? last : shared.index;
      shared.set(Math.max(0, Math.min(last, from + KEYS[event.key])));
    });
    shared.join(point);
    shared.painters.push(paint);
    // Painting changes the figure's height; outside the observer's own round, or browsers report a loop.
    new ResizeObserver(() => requestAnimationFrame(paint)).observe(figure);
    point(null);
    return figure;
  }

  return { chart, cursor, present };
})();

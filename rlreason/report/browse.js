/* The rollout browser: problems in pages, each with its completions. */
const browse = (() => {
  const { el, appendVisible, appendMarked, format } = draw;
  const PAGE = 20, SHORT = 1500;
  // Verdicts come from files: no word of theirs may find a property of Object.prototype.
  const table = (entries) => Object.assign(Object.create(null), entries);
  const COLOR = table({ correct: "--correct", wrong: "--wrong", unparsed: "--unparsed", timed_out: "--timed_out" });
  const colorOf = (verdict) => `--c:var(${COLOR[verdict] || "--broken"})`;
  const said = (text) => text.replaceAll("_", " ");
  const number = (value) => (value === null ? "–" : String(Number(value.toPrecision(4))).replace("-", "\u2212"));

  /* Cards: one a stage and problem, with every group of it that the page holds. */
  function cards(rollouts) {
    const found = new Map();
    for (const { stage, groups } of rollouts) {
      for (const group of groups) {
        const key = JSON.stringify([stage, group.problem, group.prompt]);
        if (!found.has(key)) found.set(key, { stage, problem: group.problem, prompt: group.prompt, rendered: group.rendered, reference: group.reference, rows: [] });
        for (const row of group.rows) found.get(key).rows.push({ ...row, step: group.step, group: group.group, partial: group.partial });
      }
    }
    return [...found.values()];
  }

  function haystack(card, row) {
    row.hay ||= [card.problem, card.prompt, card.reference, row.response, row.extracted, row.detail].join("\n").toLowerCase();
    return row.hay;
  }

  function readForm(form) {
    const data = new FormData(form);
    const bound = (name, otherwise) => (data.get(name) === "" ? otherwise : Number(data.get(name)));
    const sort = data.get("sort");
    return {
      stage: data.get("stage"), verdict: data.get("verdict"), text: data.get("text").toLowerCase(),
      from: bound("from", -Infinity), to: bound("to", Infinity), by: sort.slice(0, -1), down: sort.endsWith("-"),
    };
  }

  /* The cards that have matching completions, these in order, and the cards by their first one. */
  function select(all, ask) {
    const sign = ask.down ? -1 : 1;
    const rank = (a, b) => {
      const [x, y] = [a[ask.by], b[ask.by]];
      if (x === null || y === null) return (x === null) - (y === null);
      return sign * (x - y);
    };
    const found = [];
    for (const card of all) {
      if (ask.stage && card.stage !== ask.stage) continue;
      const rows = card.rows.filter((row) =>
        (!ask.verdict || row.verdict === ask.verdict) && row.step >= ask.from && row.step <= ask.to &&
        (!ask.text || haystack(card, row).includes(ask.text)));
      if (rows.length) found.push({ card, rows: rows.sort(rank) });
    }
    return found.sort((a, b) => rank(a.rows[0], b.rows[0]));
  }

  /* The response with its tags dim, its thought soft and its answer strong. Unclosed tags run to the end. */
  function segments(text, query) {
    const box = el("div", { class: "text" });
    let inside = "", from = 0;
    const put = (piece, css) => { if (piece) box.append(appendMarked(el("span", { class: css }), piece, query)); };
    for (const match of text.matchAll(/<(\/?)(think|answer)>/g)) {
      put(text.slice(from, match.index), inside);
      put(match[0], "tag");
      inside = match[1] ? "" : match[2];
      from = match.index + match[0].length;
    }
    put(text.slice(from), inside);
    return box;
  }

  function responseBox(row, query) {
    if (row.response.length <= SHORT) return [segments(row.response, query)];
    const box = segments(row.response.slice(0, SHORT), query);
    const more = el("button", { type: "button" }, `Show all ${row.response.length.toLocaleString("en")} characters`);
    more.addEventListener("click", () => { box.replaceWith(segments(row.response, query)); more.remove(); });
    return [box, more];
  }

  const labelled = (label, value) => el("span", null, label + " ", el("b", null, value));

  function completion(row, query) {
    const finish = row.finish === "length" ? "cut at the length limit" : null;
    const head = el("header", null,
      el("span", { class: "badge" }, said(row.verdict)),
      labelled("reward", number(row.score)),
      row.advantage === null ? null : labelled("advantage", (row.advantage > 0 ? "+" : "") + row.advantage.toFixed(2).replace("-", "\u2212")),
      row.tokens === null ? null : labelled("tokens", String(row.tokens)),
      finish && el("b", null, finish),
      row.version === null ? null : labelled("version", String(row.version)));
    const parts = Object.entries(row.parts);
    const foot = el("footer");
    if (row.extracted !== null) { foot.append("read as "); appendMarked(foot.appendChild(el("code")), row.extracted, query); foot.append(" "); }
    parts.forEach(([name, value], i) => { foot.append(i || row.extracted !== null ? "· " : ""); appendVisible(foot, `${name} ${number(value)} `); });
    if (row.detail) { foot.append(foot.childNodes.length ? "· " : ""); appendMarked(foot, row.detail, query); }
    const cut = row.cut ? el("p", { class: "footnote" }, `${row.cut.toLocaleString("en")} more characters in rollouts.jsonl`) : null;
    return el("article", { class: "completion", style: colorOf(row.verdict) }, head, ...responseBox(row, query), cut, foot);
  }

  function body(card, rows, query) {
    const question = el("dl", { class: "question" },
      el("dt", null, "prompt"), el("dd", null, appendMarked(el("div", { class: "text" }), card.prompt, query)));
    if (card.reference !== null) question.append(el("dt", null, "reference"), el("dd", null, appendMarked(el("div", { class: "text" }), card.reference, query)));
    if (card.rendered) question.append(el("dt", null, "as the model read it"), el("dd", null, appendMarked(el("div", { class: "text" }), card.rendered, query)));
    const box = el("div", { class: "body" }, question);
    for (const group of new Set(rows.map((row) => row.group))) {
      const mine = rows.filter((row) => row.group === group);
      const whole = card.rows.filter((row) => row.group === group);
      const scores = whole.filter((row) => row.score !== null).map((row) => row.score);
      const mean = scores.length ? `, mean reward ${number(scores.reduce((a, b) => a + b) / scores.length)}` : "";
      const all = whole.length;
      const which = mine.length < all ? `${mine.length} of ${all} completions match` : `${all} ${all === 1 ? "completion" : "completions"}`;
      const why = whole[0].partial ? ", kept because their check failed" : mean;
      const head = el("p", { class: "group" }, `step ${mine[0].step}: ${which}${why}, group `);
      appendVisible(head.appendChild(el("code")), String(group).slice(0, 120));
      box.append(head, el("div", { class: "completions" }, ...mine.map((row) => completion(row, query))));
    }
    return box;
  }

  function problem({ card, rows }, query, open) {
    const tally = table({});
    for (const row of rows) tally[row.verdict] = (tally[row.verdict] || 0) + 1;
    const strip = el("span", { class: "strip", "aria-hidden": "true" }, ...rows.slice(0, 64).map((row) => el("i", { style: colorOf(row.verdict) })));
    const order = (verdict) => (verdict in COLOR ? Object.keys(COLOR).indexOf(verdict) : 9);
    const counts = Object.entries(tally).sort(([a], [b]) => order(a) - order(b)).map(([verdict, n]) => `${n} ${said(verdict)}`).join(", ");
    const steps = [...new Set(rows.map((row) => row.step))].sort((a, b) => a - b);
    const when = steps.length > 1 ? `steps ${steps[0]} to ${steps[steps.length - 1]}` : `step ${steps[0]}`;
    const title = el("span", { class: "title" });
    appendVisible(title.appendChild(el("code")), card.prompt.slice(0, 160) || "(no prompt)");
    const id = appendVisible(el("span", { class: "tally" }), card.problem.slice(0, 80));
    const box = el("details", { class: "problem" }, el("summary", null, title, strip,
      el("span", { class: "tally" }, counts), el("span", { class: "tally" }, `${card.stage}, ${when}`), id));
    const fillOnce = () => box.open && box.children.length === 1 && box.append(body(card, rows, query));
    box.addEventListener("toggle", fillOnce);
    box.open = open;
    fillOnce();
    return box;
  }

  function start(rollouts) {
    const form = document.getElementById("filters");
    if (!form) return;
    const [pager, list, found] = ["pager", "problems", "found"].map((id) => document.getElementById(id));
    const [previous, next] = ["previous", "next"].map((id) => document.getElementById(id));
    const all = cards(rollouts);
    let page = 0;

    function update() {
      const ask = readForm(form);
      const matching = select(all, ask);
      const from = page * PAGE;
      const completions = matching.reduce((sum, one) => sum + one.rows.length, 0);
      const shown = matching.slice(from, from + PAGE);
      found.textContent = matching.length
        ? `Problems ${from + 1} to ${from + shown.length} of ${format(matching.length, "")}, ${completions.toLocaleString("en")} completions`
        : "Nothing matches these filters.";
      list.replaceChildren(...shown.map((one, i) => problem(one, ask.text, i === 0 || matching.length <= 3)));
      previous.disabled = page === 0;
      next.disabled = from + PAGE >= matching.length;
    }
    const turn = (by) => { page += by; update(); pager.scrollIntoView({ block: "nearest" }); };
    let waiting = 0;
    form.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(() => { page = 0; update(); }, 120); });
    form.addEventListener("reset", () => setTimeout(() => { page = 0; update(); }));
    form.addEventListener("submit", (event) => event.preventDefault());
    previous.addEventListener("click", () => turn(-1));
    next.addEventListener("click", () => turn(1));
    form.hidden = pager.hidden = false;
    update();
  }

  return { start };
})();

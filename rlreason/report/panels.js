/* Which charts a stage shows, from the scalars that its metrics have. What no panel claims gets a chart of its own. */
const panels = (() => {
  const { el, format } = draw;
  const COLORS = ["--c0", "--c1", "--c2", "--c3", "--c4", "--c5", "--c6"];

  /* [title, axis, unit, series as [key, name, colour?], options]. A key that ends in * takes all that begin so. */
  const LINES = [
    ["Accuracy", "share of problems", "%", [["accuracy/heldout", "held-out", "--c1"], ["accuracy/train", "train", "--c0"]], { zero: true }],
    ["Reward", "score of a completion", "", [["reward/mean", "mean"], ["reward/std", "std", "--c6"]], {}],
    ["Loss", "per token, nats", "", [["loss", "loss"]], { only: ["sft", "distill"] }],
    ["Reward parts", "mean before weights", "", [["reward/*", ""]], {}],
    ["Completion length", "tokens", "", [["length/mean", "mean"], ["length/max", "longest", "--c6"]], { zero: true }],
    ["Truncated", "share of completions", "%", [["truncated", "truncated"]], { zero: true }],
    ["Entropy", "nats per token", "", [["entropy", "entropy"]], { zero: true }],
    ["KL to reference", "nats per token", "", [["kl/reference", "KL"]], {}],
    ["Sampler vs trainer", "nats per token", "", [["mismatch/max", "max", "--c1"], ["mismatch/mean", "mean", "--c0"], ["mismatch/k3", "k3", "--c6"]], { log: true }],
    ["Clipped", "share of tokens", "%", [["clip_fraction", "clipped"]], { zero: true }],
    ["Largest ratio", "new to old probability", "", [["ratio/max", "ratio"]], { log: "wide" }],
    ["Gradient norm", "before clipping", "", [["grad_norm", "norm"]], { log: "wide", zero: true }],
    ["Loss", "per token", "", [["loss", "loss"]], { never: ["sft", "distill"] }],
    ["Learning rate", "", "", [["lr", "rate"]], { zero: true }],
  ];
  const STACKS = [
    ["Verdicts", "share of completions", "%", [["verdict/correct", "correct", "--correct"], ["verdict/wrong", "wrong", "--wrong"], ["verdict/unparsed", "unparsed", "--unparsed"], ["verdict/program_timed_out", "program too slow", "--c4"], ["verdict/timed_out", "check timed out", "--timed_out"], ["verdict/broken", "broken", "--broken"]], { share: true }],
    ["Groups", "groups a step", "", [["groups/kept", "kept", "--c0"], ["groups/zero_variance", "no spread", "--c6"], ["groups/no_verdict", "no verdict", "--c4"]], {}],
  ];
  const AFTER = [
    ["Solved so far", "share of problems", "%", [["acceptance", "solved"]], { zero: true }],
    ["Throughput", "tokens per second", "", [["tokens_per_second", "tokens"]], { zero: true }],
  ];

  const wide = (values) => {
    const positive = charts.present(values).filter((v) => v > 0).sort((a, b) => a - b);
    return positive.length > 1 && positive[positive.length - 1] / positive[0] > 30;
  };

  function pick(stage, wanted, claimed) {
    const series = [];
    for (const [key, name, color] of wanted) {
      const keys = key.endsWith("*") ? Object.keys(stage.series).filter((k) => k.startsWith(key.slice(0, -1)) && !claimed.has(k)) : [key];
      for (const one of keys) {
        if (!stage.series[one]) continue;
        claimed.add(one);
        series.push({ key: one, name: name || one.split("/").slice(1).join("/"), color: color || COLORS[series.length % COLORS.length], values: stage.series[one] });
      }
    }
    return series;
  }

  function build(stage, [title, axis, unit, wanted, options], form, claimed) {
    if (options.only && !options.only.includes(stage.kind)) return null;
    if (options.never && options.never.includes(stage.kind)) return null;
    const series = pick(stage, wanted, claimed);
    if (!series.length) return null;
    const log = options.log === "wide" ? series.some((s) => wide(s.values)) : Boolean(options.log);
    return { title, axis, unit, series, form, log, zero: options.zero, share: options.share };
  }

  /* Seconds of a step: the parts that are known, and what is left of the whole. */
  function timing(stage, claimed) {
    const parts = pick(stage, [["seconds/sample", "sample", "--c0"], ["seconds/score", "score", "--c1"], ["seconds/train", "train", "--c2"], ["seconds/*", ""]], claimed);
    const whole = stage.series.seconds;
    claimed.add("seconds");
    if (!whole && !parts.length) return null;
    if (whole) {
      const rest = whole.map((v, i) => (v === null ? null : Math.max(0, v - parts.reduce((sum, p) => sum + (p.values[i] || 0), 0))));
      parts.push({ key: "seconds", name: parts.length ? "other" : "step", color: parts.length ? "--c6" : "--c0", values: rest });
    }
    return { title: "Time", axis: "seconds a step", unit: "", series: parts, form: parts.length > 1 ? "stack" : "line", zero: true };
  }

  /* Stages that write no rate of their own: tokens over the whole time of the step. */
  function derivedRate(stage) {
    const { tokens, seconds } = stage.series;
    if (!tokens || !seconds) return null;
    const values = tokens.map((n, i) => (n === null || !seconds[i] ? null : n / seconds[i]));
    return { title: "Throughput", axis: "tokens/s, evaluation included", unit: "", form: "line", zero: true, series: [{ key: "rate", name: "tokens", color: "--c0", values }] };
  }

  function specs(stage) {
    const ledger = Object.keys(stage.series).filter((key) => key.startsWith("stopped/") || key.startsWith("distinct/"));
    const claimed = new Set(["policy_version", "tokens", "problems", "kept", ...ledger]);
    const found = [];
    const lines = LINES.map((row) => build(stage, row, "line", claimed));
    const stacks = STACKS.map((row) => build(stage, row, "stack", claimed));
    // Verdicts stand beside the rewards that come from them; groups and cost come last.
    found.push(...lines.slice(0, 4), stacks[0], ...lines.slice(4), stacks[1]);
    found.push(...AFTER.map((row) => build(stage, row, "line", claimed)), timing(stage, claimed));
    const rate = !stage.series.tokens_per_second && derivedRate(stage);
    if (rate) found.push(rate);
    const other = Object.keys(stage.series).filter((key) => !claimed.has(key));
    const rest = other.map((key) => ({ title: key, axis: "", unit: "", form: "line", log: false, series: [{ key, name: key, color: "--c0", values: stage.series[key] }] }));
    return { known: found.filter(Boolean), rest };
  }

  /* Every number behind the charts, built only when asked for. */
  function table(stage) {
    const keys = Object.keys(stage.series);
    const head = el("tr", null, el("th", { scope: "col" }, "step"), ...keys.map((key) => el("th", { scope: "col" }, key)));
    const rows = stage.steps.map((step, i) =>
      el("tr", null, el("th", { scope: "row" }, String(step)), ...keys.map((key) => el("td", null, format(stage.series[key][i], "")))));
    return el("table", null, el("thead", null, head), el("tbody", null, ...rows));
  }

  function fold(title, make) {
    const box = el("details", { class: "more" }, el("summary", null, title));
    box.addEventListener("toggle", () => box.open && box.children.length === 1 && box.append(make()));
    return box;
  }

  /* Where the steps of a stage are drawn; steps where the stage did not count what is asked for. */
  function axis(stage, wanted) {
    const sums = stage.axes[wanted];
    if (!sums) return null;
    const say = (i) => `step ${stage.steps[i]}`;
    if (wanted === "tokens") return { unit: "tokens", at: sums, say };
    const long = sums[sums.length - 1] > 7200;
    return { unit: long ? "hours" : "minutes", at: sums.map((s) => s / (long ? 3600 : 60)), say };
  }

  function show(container, stage, wanted) {
    const shared = charts.cursor(stage.steps, axis(stage, wanted));
    const { known, rest } = specs(stage);
    container.replaceChildren(...known.map((spec) => charts.chart(spec, shared)));
    shared.paint();
    while (container.nextElementSibling && container.nextElementSibling.matches("details.more")) container.nextElementSibling.remove();
    const after = [];
    if (rest.length) after.push(fold(`Other scalars (${rest.length})`, () => el("div", { class: "charts" }, ...rest.map((spec) => charts.chart(spec, shared)))));
    after.push(fold("All values", () => el("div", { class: "values", tabindex: 0, role: "region", "aria-label": `All values of ${stage.name}` }, table(stage))));
    container.after(...after);
  }

  return { show, axis, fold };
})();

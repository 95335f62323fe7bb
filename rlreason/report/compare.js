/* The charts of two runs over each other: one line a run, each where its own steps are. */
(() => {
  const { format } = draw;
  const RUNS = [["A", "--c0"], ["B", "--c1"]];
  /* [key, title, axis, unit, options]; what is not here gets a chart under its own name. */
  const CHARTS = [
    ["accuracy/heldout", "Held-out accuracy", "share of problems", "%", { zero: true }],
    ["accuracy/train", "Training accuracy", "share of problems", "%", { zero: true }],
    ["reward/mean", "Reward", "mean score of a completion", "", {}],
    ["loss", "Loss", "per token", "", {}],
    ["length/mean", "Completion length", "mean, tokens", "", { zero: true }],
    ["truncated", "Truncated", "share of completions", "%", { zero: true }],
    ["entropy", "Entropy", "nats per token", "", { zero: true }],
    ["mismatch/k3", "Sampler vs trainer", "k3, nats per token", "", { log: true }],
    ["kl/reference", "KL to reference", "nats per token", "", {}],
    ["grad_norm", "Gradient norm", "before clipping", "", { zero: true }],
    ["groups/kept", "Groups kept", "groups a step", "", { zero: true }],
    ["tokens_per_second", "Throughput", "tokens per second", "", { zero: true }],
    ["seconds", "Time", "seconds a step", "", { zero: true }],
  ];
  const HIDDEN = new Set(["policy_version", "tokens", "problems", "kept"]);

  /* Every place where either run has a step, and for each run which of its steps is there. */
  function merged(runs, wanted) {
    const axes = runs.map((run) => panels.axis(run, wanted));
    const known = wanted === "step" || axes.every(Boolean);
    const unit = known && wanted !== "step" ? (axes.some((a) => a.unit === "hours") ? "hours" : axes[0].unit) : "step";
    const places = runs.map((run, r) => {
      if (unit === "step") return run.steps;
      return unit === "hours" && axes[r].unit === "minutes" ? axes[r].at.map((v) => v / 60) : axes[r].at;
    });
    const at = [...new Set(places.flat())].sort((a, b) => a - b);
    const index = places.map((list) => new Map(list.map((place, i) => [place, i])));
    const say = (i) => (unit === "step" ? `step ${at[i]}` : `${format(at[i], "")} ${unit}`);
    return { at, index, axis: { unit, at, say } };
  }

  function spec(row, stage, where) {
    const [key, title, axis, unit, options] = row;
    const series = [];
    stage.runs.forEach((run, r) => {
      const own = run.series[key];
      if (!own) return;
      const values = where.at.map((place) => (where.index[r].has(place) ? own[where.index[r].get(place)] : null));
      series.push({ key, name: RUNS[r][0], color: RUNS[r][1], values, join: own.filter((v) => v !== null).length >= own.length / 2 && own.length >= 8 });
    });
    return series.length ? { title, axis, unit, form: "line", zero: options.zero, log: Boolean(options.log), series } : null;
  }

  function show(container, stage, wanted) {
    const where = merged(stage.runs, wanted);
    const shared = charts.cursor(where.at, where.axis);
    const named = new Set(CHARTS.map(([key]) => key));
    const keys = [...new Set(stage.runs.flatMap((run) => Object.keys(run.series)))].filter((key) => !named.has(key) && !HIDDEN.has(key));
    const chartsOf = (rows) => rows.map((row) => spec(row, stage, where)).filter(Boolean).map((one) => charts.chart(one, shared));
    container.replaceChildren(...chartsOf(CHARTS));
    shared.paint();
    while (container.nextElementSibling) container.nextElementSibling.remove();
    if (keys.length) {
      container.after(panels.fold(`Other scalars (${keys.length})`, () => draw.el("div", { class: "charts" }, ...chartsOf(keys.map((key) => [key, key, "", "", {}])))));
    }
  }

  const data = JSON.parse(document.getElementById("run-data").textContent);
  function drawAll(wanted) {
    for (const container of document.querySelectorAll(".charts[data-stage]")) show(container, data.stages[Number(container.dataset.stage)], wanted);
  }
  const choice = document.getElementById("axis");
  choice.hidden = false;
  choice.querySelector("select").addEventListener("change", (event) => drawAll(event.target.value));
  drawAll("step");
  document.documentElement.dataset.ready = "yes";
})();

/* Starts the page: theme button, charts, rollouts. */
(() => {
  const THEMES = ["system", "light", "dark"];
  const root = document.documentElement;
  const button = document.getElementById("theme");

  // Storage can be refused to files; the choice then lasts as long as the page.
  function remembered() {
    try { return localStorage.getItem("rlreason-theme"); } catch { return null; }
  }
  function remember(theme) {
    try { localStorage.setItem("rlreason-theme", theme); } catch { /* see above */ }
  }
  function apply(theme) {
    if (theme === "system") delete root.dataset.theme;
    else root.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
  }
  let theme = THEMES.includes(remembered()) ? remembered() : "system";
  apply(theme);
  button.hidden = false;
  button.addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    apply(theme);
    remember(theme);
  });

  const data = JSON.parse(document.getElementById("run-data").textContent);
  function drawStages(wanted) {
    for (const container of document.querySelectorAll(".charts[data-stage]")) {
      panels.show(container, data.stages[Number(container.dataset.stage)], wanted);
    }
  }
  const choice = document.getElementById("axis");
  choice.hidden = false;
  choice.querySelector("select").addEventListener("change", (event) => drawStages(event.target.value));
  drawStages("step");

  /* How old the page is: it may be of a run that goes on. */
  const written = document.getElementById("written");
  const minutes = Math.round((Date.now() - Date.parse(written.dateTime)) / 60000);
  const old = minutes < 1 ? "less than a minute" : minutes < 120 ? `${minutes} min` : minutes < 2880 ? `${Math.round(minutes / 60)} hours` : `${Math.round(minutes / 1440)} days`;
  if (minutes >= 0) written.after(`, ${old} ago`);
  browse.start(data.rollouts);
  root.dataset.ready = "yes";
})();

// Draws the plots from #specs. Colour tokens ("@run-3") are resolved against the style sheet, so that a change of
// the reader's colour scheme redraws the same specification.
(() => {
  "use strict";
  const specs = JSON.parse(document.getElementById("specs").textContent);
  const touch = window.matchMedia("(pointer: coarse)").matches;
  const config = {
    responsive: true, displaylogo: false, scrollZoom: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  };
  const style = () => getComputedStyle(document.documentElement);

  // Only values under a key that names a colour are tokens: a device may be called "@text".
  function coloured(value, key, css) {
    if (Array.isArray(value)) return value.map((item) => coloured(item, key, css));
    if (value !== null && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, coloured(v, k, css)]));
    }
    if (typeof value === "string" && value[0] === "@" && /color$/.test(key)) {
      return css.getPropertyValue("--" + value.slice(1)).trim();
    }
    return value;
  }

  function draw(canvas) {
    const css = style();
    const spec = specs[canvas.id];
    const layout = coloured(spec.layout, "", css);
    layout.font.family = getComputedStyle(document.body).fontFamily;
    layout.dragmode = touch ? false : "zoom";  // a finger scrolls the page
    layout.hoverlabel = { ...layout.hoverlabel, bgcolor: css.getPropertyValue("--sunken").trim(),
      font: { color: css.getPropertyValue("--text").trim() } };
    Plotly.react(canvas, coloured(spec.data, "", css), layout, { ...config, displayModeBar: touch ? false : "hover" });
    canvas.dataset.drawn = "yes";
  }

  // A closed <details> has no width: its plot is drawn when it opens.
  const shown = (canvas) => canvas.closest("details:not([open])") === null;
  const drawShown = () => document.querySelectorAll(".canvas").forEach((canvas) => shown(canvas) && draw(canvas));
  document.querySelectorAll("details").forEach((details) => details.addEventListener("toggle", () => {
    details.querySelectorAll(".canvas").forEach((canvas) => shown(canvas) && !canvas.dataset.drawn && draw(canvas));
  }));

  // A link to a run opens it.
  function openTarget() {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target && target.tagName === "DETAILS") { target.open = true; target.scrollIntoView(); }
  }
  window.addEventListener("hashchange", openTarget);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    document.querySelectorAll(".canvas[data-drawn]").forEach(draw);
  });
  window.addEventListener("beforeprint", () => {
    document.querySelectorAll("details.run").forEach((details) => { details.open = true; });
  });
  drawShown();
  openTarget();
})();

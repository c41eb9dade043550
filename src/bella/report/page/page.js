// Unpacks plotly, which the page holds gzipped, and hands it the charts.
(async () => {
  const text = (id) => document.getElementById(id).textContent;
  const places = document.querySelectorAll(".plot");
  try {
    const packed = Uint8Array.from(atob(text("plotly")), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    (0, eval)(await new Response(stream).text());
  } catch (error) {
    for (const place of places) {
      place.textContent = "This browser cannot draw the curve; its numbers stand below.";
    }
    throw error;
  }
  const charts = JSON.parse(text("charts"));
  for (const place of places) {
    const { data, layout } = charts[place.id];
    place.textContent = "";
    const names = data.filter((line) => line.showlegend !== false).length;
    const rows = Math.ceil(names / (place.clientWidth < 420 ? 1 : 2));
    layout.height = 295 + 20 * rows;
    await Plotly.newPlot(place, data, layout, { displayModeBar: false, responsive: true });
  }
  // Paper has a width of its own, which plotly does not ask for.
  const fit = (width) => places.forEach((place) => Plotly.relayout(place, { width }));
  addEventListener("beforeprint", () => fit(310));
  addEventListener("afterprint", () => fit(null));
  document.documentElement.dataset.drawn = places.length;
})();

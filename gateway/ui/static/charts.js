// Draws every element with data-chart: {"names": [...], "data": [x, y1, y2, ...]} as lines.
(function () {
  "use strict";
  var colours = ["#2f7ed8", "#d8702f", "#2fa56b", "#a04fc0", "#c0394b", "#8a8a1f", "#1f9aa8", "#8c6b4f"];
  function draw(element) {
    var chart = JSON.parse(element.dataset.chart), unit = element.dataset.unit || "";
    if (!chart.data[0].length) { return; }
    var ink = getComputedStyle(document.body).color;
    var axis = { stroke: ink, grid: { stroke: "rgba(128,128,128,.25)" } };
    var options = {
      width: element.clientWidth, height: 260, scales: { x: { time: element.dataset.time === "1" } },
      axes: [Object.assign(element.dataset.time === "1" ? {} : { incrs: [1, 2, 5, 10, 20, 50, 100] }, axis), Object.assign({ size: 105, values: function (u, v) { return v.map(function (n) { return Number(n.toPrecision(4)) + " " + unit; }); } }, axis)],
      series: [{}].concat(chart.names.map(function (name, i) {
        return { label: name, stroke: colours[i % colours.length], width: 2, points: { show: chart.data[0].length < 40 } };
      }))
    };
    element.textContent = "";
    new uPlot(options, chart.data, element);
  }
  function all() { document.querySelectorAll("[data-chart]").forEach(draw); }
  document.addEventListener("DOMContentLoaded", all);
  var timer; window.addEventListener("resize", function () { clearTimeout(timer); timer = setTimeout(all, 150); });
})();

// Draws every element with data-chart: {"names": [...], "data": [x, y1, y2, ...]} as lines. Numbers of series count from
// 1: "bands" are filled between two, "dashed" and "faint" change lines, "marks" are points alone. data-front: the slider.
(function () {
  "use strict";
  var colours = ["#2f7ed8", "#d8702f", "#2fa56b", "#a04fc0", "#c0394b", "#8a8a1f", "#1f9aa8", "#8c6b4f"];
  function has(list, i) { return (list || []).indexOf(i) >= 0; }
  function amount(n, unit) { n = Number(n.toPrecision(4)); return unit === "USD" ? "$" + n : n + " " + unit; }
  function moment(seconds) { return new Date(seconds * 1000).toISOString().slice(0, 16).replace("T", " "); }
  function dates(u, splits, place, space, step) {
    return splits.map(function (s) { return s === null ? "" : step < 86400 && s % 86400 ? moment(s).slice(11) : moment(s).slice(5, 10); });
  }
  function draw(element) {
    var chart = JSON.parse(element.dataset.chart), unit = element.dataset.unit || "";
    if (!chart.data[0].length) { return; }
    var ink = getComputedStyle(document.body).color, time = element.dataset.time === "1";
    var axis = { stroke: ink, grid: { stroke: "rgba(128,128,128,.25)" } };
    var across = time ? { values: dates } : chart.across && chart.across !== "turns" ? { label: chart.across, values: function (u, v) { return v.map(function (n) { return Number(n.toPrecision(4)); }); } } : { label: chart.across, incrs: [1, 2, 5, 10, 20, 50, 100] };
    var options = {
      width: element.clientWidth, height: 260, tzDate: function (s) { return uPlot.tzDate(new Date(s * 1000), "Etc/UTC"); },
      scales: { x: { time: time }, y: chart.zero ? { range: function (u, low, high) { return [Math.min(0, low), high * 1.05 || 1]; } } : {} },
      axes: [Object.assign(across, axis), Object.assign({ size: 105, values: function (u, v) { return v.map(function (n) { return amount(n, unit); }); } }, axis)],
      series: [{ label: time ? "UTC" : chart.across, value: function (u, v) { return v === null ? "--" : time ? moment(v) : Number(v.toPrecision(4)); } }].concat(chart.names.map(function (name, i) {
        var number = i + 1, colour = colours[i % colours.length], mark = has(chart.marks, number);
        return { label: name, value: function (u, v) { return v === null ? "--" : amount(v, unit); }, stroke: has(chart.faint, number) ? "rgba(128,128,128,.5)" : colour, width: mark ? 0 : has(chart.faint, number) ? 1 : 2,
          dash: has(chart.dashed, number) ? [6, 5] : undefined, spanGaps: true,
          points: { show: mark || (!has(chart.faint, number) && chart.data[0].length < 40), size: mark ? 14 : 5, fill: mark ? colour : undefined } };
      })),
      bands: (chart.bands || []).map(function (pair) { return { series: pair, fill: "rgba(128,128,128,.18)" }; })
    };
    element.textContent = "";
    new uPlot(options, chart.data, element);
  }
  function all() { document.querySelectorAll("[data-chart]").forEach(draw); }
  function number(value, places) { return Number(value.toPrecision(places)).toString(); }
  function between(low, high, scale) { return low === null ? "" : " (95 %: " + number(low * scale, 4) + " to " + number(high * scale, 4) + ")"; }
  function preview(section) {
    var front = JSON.parse(section.dataset.front), slider = section.querySelector("input"), shown = section.querySelector("output");
    function change() {
      var p = front.points[Number(slider.value)], t = front.today, more = p.cost_usd / t.cost_usd - 1, better = (p.quality - t.quality) * 100;
      var words = "Lambda " + number(p.lambda_per_usd, 3) + ": " + number(p.cost_usd * 100, 4) + " cents per turn" + between(p.cost_usd_low, p.cost_usd_high, 100) +
        ", quality " + number(p.quality * 100, 3) + " points" + between(p.quality_low, p.quality_high, 100) + ". Against the turns as answered: " +
        (more >= 0 ? "+" : "") + number(more * 100, 3) + " % cost, " + (better >= 0 ? "+" : "") + number(better, 3) + " points.";
      shown.textContent = words;
      slider.setAttribute("aria-valuetext", words);
    }
    slider.addEventListener("input", change);
    change();
  }
  document.addEventListener("DOMContentLoaded", function () { all(); document.querySelectorAll("[data-front]").forEach(preview); });
  var timer; window.addEventListener("resize", function () { clearTimeout(timer); timer = setTimeout(all, 150); });
})();

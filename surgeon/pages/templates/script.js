(function () {
  "use strict";
  var field = document.getElementById("find"), told = document.getElementById("found");
  var named = Array.prototype.slice.call(document.querySelectorAll("[data-name]"));
  function fits(part, words) {
    var name = part.getAttribute("data-name").toLowerCase();
    return words.every(function (word) { return name.indexOf(word) >= 0; });
  }
  function find() {
    var words = field.value.toLowerCase().split(/\s+/).filter(Boolean), layers = {}, first = null;
    named.forEach(function (part) {
      var fit = fits(part, words);
      var lane = part.parentNode.classList.contains("rows");
      part.classList.toggle(lane ? "off" : "hidden", !fit);
      if (fit && lane) { layers[part.getAttribute("data-name")] = true; first = first || part; }
    });
    var box = document.querySelector(".lanes");
    if (box) {
      box.scrollTop = words.length && first ? Math.max(0, first.offsetTop - 60) : 0;
      var name = first && first.querySelector(".name"), out = name && name.offsetLeft + name.offsetWidth > box.clientWidth;
      box.scrollLeft = words.length && out ? name.offsetLeft - 12 : 0;
    }
    told.textContent = words.length ? Object.keys(layers).length + " layers match" : "";
  }
  if (field) { field.addEventListener("input", find); }
  function light(row) {
    var groups = row ? row.getAttribute("data-groups").split(" ") : null;
    document.querySelectorAll(".lane").forEach(function (lane) {
      lane.classList.toggle("off", !!groups && groups.indexOf(lane.getAttribute("data-group")) < 0);
    });
    document.querySelectorAll(".rows > li.on").forEach(function (other) { other.classList.remove("on"); });
    if (row) { row.classList.add("on"); }
  }
  var rows = document.querySelector(".rows");
  if (rows) {
    ["mouseover", "focusin"].forEach(function (kind) {
      rows.addEventListener(kind, function (event) { light(event.target.closest("li")); });
    });
    ["mouseleave", "focusout"].forEach(function (kind) { rows.addEventListener(kind, function () { light(null); }); });
  }
})();

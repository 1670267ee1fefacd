"use strict";
(() => {
  const HEAD = 30, FOOT = 26;
  const root = document.documentElement;

  const themes = ["auto", "light", "dark"];
  const themeButton = document.getElementById("theme");
  themeButton.textContent = `theme: ${root.dataset.theme}`;
  themeButton.addEventListener("click", () => {
    const next = themes[(themes.indexOf(root.dataset.theme) + 1) % themes.length];
    root.dataset.theme = next;
    themeButton.textContent = `theme: ${next}`;
  });

  document.querySelectorAll("svg.graph").forEach(explore);

  // One drawing with its tools: a page has several where parts of a model are tuned.
  function explore(svg) {
    const section = svg.closest("section"), within = (name) => section.querySelector(`.${name}`);
    const boxes = JSON.parse(within("boxes").textContent);
    const parts = [...svg.querySelectorAll("[data-box]")];
    const containers = parts.filter((part) => part.classList.contains("container"));
    const direct = (part, selector) => part.querySelector(`:scope > ${selector}`);

    // The same expressions as in geometry.py: rows' edges, with offsets; a mean of two after a tilde.
    function evaluate(text, tops, heights, total) {
      const places = text.split("~").map((place) => {
        const [, index, edge, offset] = /^(\d*)([btmex])([+-][\d.]+)?$/.exec(place);
        const more = parseFloat(offset || "0");
        if (edge === "e") return HEAD + more;
        if (edge === "x") return total + more;
        return tops[index] + more + { t: 0, m: heights[index] / 2, b: heights[index] }[edge];
      });
      return places.reduce((a, b) => a + b, 0) / places.length;
    }

    function place(container) {
      const rows = (container.dataset.rows || "").split(" ").filter(Boolean).map((row) => row.split(",").map(Number));
      const inside = direct(container, ".inside");
      const moving = [...inside.children].filter((part) => part.dataset.at);
      for (const part of moving) {
        const inner = part.dataset.row === undefined ? null : direct(part, ".container");
        if (inner) rows[part.dataset.row][1] = inner.drawnHeight;
      }
      const tops = [], heights = rows.map((row) => row[1]);
      let y = HEAD;
      for (const [gap, height] of rows) { y += gap; tops.push(y); y += height; }
      const whole = y + FOOT;
      for (const part of moving) {
        const text = part.dataset.at.replace(/\{([^}]*)\}/g, (_, found) => evaluate(found, tops, heights, whole));
        if (part.tagName === "path") part.setAttribute("d", text);
        else if (part.tagName === "circle") part.setAttribute("cy", text);
        else if (part.tagName === "text") part.setAttribute("y", text);
        else part.setAttribute("transform", part.getAttribute("transform").replace(/,[^)]*\)/, `,${text})`));
      }
      const closed = container.classList.contains("closed");
      container.drawnHeight = closed ? HEAD : whole;
      for (const rect of container.querySelectorAll(":scope > .frame, :scope > .copy")) {
        rect.setAttribute("height", container.drawnHeight);
      }
      const sign = container.querySelector(":scope > .head > .sign");
      if (sign) sign.textContent = closed ? "▸" : "▾";
    }

    const around = (part) => part.parentElement.closest(".container");

    function fit() {
      const outer = svg.querySelector(".container");
      const [x, y, width] = svg.getAttribute("viewBox").split(" ").map(Number);
      const height = outer.drawnHeight - y + 20;
      svg.setAttribute("viewBox", `${x} ${y} ${width} ${height}`);
      svg.setAttribute("height", height);
      const page = svg.querySelector(".page");
      if (page) page.setAttribute("height", height);
    }

    function placeUp(container) {
      for (let one = container; one; one = around(one)) place(one);
      fit();
    }

    function placeAll() {
      for (const container of [...containers].reverse()) place(container);
      fit();
    }

    function toggle(container, closed) {
      container.classList.toggle("closed", closed);
      placeUp(container);
    }

    const panel = within("details");
    const escaped = (text) => String(text).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);
    const list = (facts) => `<dl>${facts.filter(([, value]) => value !== "" && value !== null && value !== undefined)
      .map(([name, value]) => `<dt>${name}</dt><dd>${escaped(value)}</dd>`).join("")}</dl>`;
    const number = (value) => (value ? Number(value).toLocaleString("en") : "");

    function tunerText(tuner) {
      const config = Object.entries(tuner.config).filter(([, value]) => value !== null).map(([k, v]) => `${k}: ${JSON.stringify(v)}`).join("\n");
      return `<h3>${escaped(tuner.title)}</h3>` + list([
        ["form", [tuner.form, tuner.how].filter(Boolean).join(", ")], ["rule", tuner.rule], ["rule line", tuner.where],
        ["reads", tuner.reads], ["changes", tuner.writes], ["parameters", number(tuner.parameters)], ["sites", tuner.sites.length],
      ]) + (tuner.text ? `<pre class="rule">${escaped(tuner.text)}</pre>` : "") + `<pre>${escaped(config)}</pre>`
        + `<details><summary>${tuner.sites.length === 1 ? "1 site" : `${tuner.sites.length} sites`}</summary><pre>${escaped(tuner.sites.join("\n"))}</pre></details>`;
    }

    function choose(part) {
      for (const old of svg.querySelectorAll(".chosen")) old.classList.remove("chosen");
      part.classList.add("chosen");
      const box = boxes[part.dataset.box];
      const place = list([
        ["module", box.paths], ["is", box.word], ["source line", box.source], ["yields", box.shape],
        ["parameters", number(box.parameters)], ["trained", number(box.trained)], ["FLOPs", number(box.flops)], ["copies", box.times > 1 ? box.times : ""],
      ]);
      panel.innerHTML = box.tuners.length && box.kind === "tuner" ? tunerText(box.tuners[0]) + place
        : `<h3>${escaped(box.title || box.word)}</h3>${place}${box.tuners.map(tunerText).join("")}`;
    }

    svg.addEventListener("click", (event) => {
      const part = event.target.closest("[data-box]");
      if (!part) return;
      choose(part);
      const head = event.target.closest(".head") || direct(event.target, ".head");
      if (head) toggle(head.parentElement, !head.parentElement.classList.contains("closed"));
    });
    svg.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      event.target.dispatchEvent(new MouseEvent("click", { bubbles: true }));
    });

    const search = within("search"), count = within("count");
    let hits = [], current = -1;
    function find() {
      const words = search.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
      hits = words.length ? parts.filter((part) => words.every((word) => boxes[part.dataset.box].find.includes(word))) : [];
      for (const part of parts) part.classList.toggle("hit", hits.includes(part));
      svg.classList.toggle("searching", words.length > 0);
      for (const hit of hits) for (let one = around(hit); one; one = around(one)) one.classList.remove("closed");
      placeAll();
      count.textContent = words.length ? `${hits.length} found` : "";
      current = -1;
      if (hits.length) next();
    }
    function next() {
      if (!hits.length) return;
      current = (current + 1) % hits.length;
      hits[current].scrollIntoView({ block: "center", inline: "nearest" });
      choose(hits[current]);
    }
    search.addEventListener("input", find);
    search.addEventListener("keydown", (event) => { if (event.key === "Enter") next(); });

    const first = new Map(containers.map((one) => [one, one.classList.contains("closed")]));
    const all = (closed) => {
      for (const one of containers) one.classList.toggle("closed", closed(one));
      placeAll();
    };
    within("open").addEventListener("click", () => all(() => false));
    within("tuners").addEventListener("click", () => all((one) => first.get(one)));
    within("close").addEventListener("click", () => all((one) => around(one) !== null));
    placeAll();
    // a wide drawing begins at the way of the values
    const canvas = svg.parentElement;
    canvas.scrollLeft = -svg.viewBox.baseVal.x - canvas.clientWidth / 2;
  }
})();

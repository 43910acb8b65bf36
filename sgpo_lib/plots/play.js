// The follower of a round's margins under sliders: the exact worst case (Corollary C.2) solved and drawn anew while one drags.
(root, data) => {
  const margins = Float64Array.from(data.margins).sort(), n = margins.length;
  const order = data.margins.map((_, i) => i).sort((i, j) => data.margins[i] - data.margins[j]);
  const COLORS = data.colors, W = 320, H = 250, LEFT = 46, RIGHT = 10, TOP = 22, BOTTOM = 38;
  const exact = x => Math.log1p(Math.exp(-Math.abs(x))) - Math.min(x, 0);
  const number = (x, digits = 3) => (+x.toPrecision(digits)).toString().replace("-", "−").replace("e−", "e−");

  // K tangents at evenly spaced points of the window; null is the logistic loss itself.
  const lossOf = (k, [a, b]) => {
    if (k === null) return exact;
    const knots = Array.from({ length: k }, (_, j) => a + (b - a) * j / (k - 1));
    const slopes = knots.map(x => -Math.exp(-exact(-x)));
    return x => Math.max(...slopes.map((s, j) => s * (x - knots[j]) + exact(knots[j])));
  };

  // The lowest margin has the steepest chord to a, so margins move in order until the budget n * radius is spent.
  const solve = (radius, tau, k) => {
    const a = margins[0] - tau, b = margins[n - 1] + tau, loss = lossOf(k, [a, b]);
    const moved = new Float64Array(n), losses = margins.map(loss);
    let budget = n * radius, gain = 0, price = 0, transport = 0;
    for (let i = 0; i < n; i++) {
      const distance = margins[i] - a;
      if (distance <= 0) { moved[i] = 1; continue; }
      const slope = (loss(a) - losses[i]) / distance;
      if (budget <= 0) { price = slope; break; }
      moved[i] = Math.min(1, budget / distance);
      budget -= moved[i] * distance, transport += moved[i] * distance, gain += moved[i] * distance * slope;
      if (moved[i] < 1) { price = slope; break; }
    }
    const nominal = losses.reduce((sum, x) => sum + x, 0) / n;
    return { a, b, loss, moved, nominal, value: nominal + gain / n, price, transport: transport / n };
  };
  root.solve = (radius, tau, k) => {  // in the order that the margins were given in
    const found = solve(radius, tau, k), moved = new Array(n);
    order.forEach((i, rank) => { moved[i] = found.moved[rank]; });
    return { value: found.value, price: found.price, transport: found.transport, moved };
  };

  const element = (tag, attributes, text = "") => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = text;
    return made;
  };
  const panel = (svg, title, xLabel, [x0, x1], [y0, y1], ticksY, toY = y => y) => {
    const x = v => LEFT + (v - x0) / (x1 - x0) * (W - LEFT - RIGHT);
    const y = v => H - BOTTOM - (toY(v) - toY(y0)) / (toY(y1) - toY(y0)) * (H - TOP - BOTTOM);
    svg.replaceChildren();
    const add = (tag, attributes, text) => svg.appendChild(element(tag, attributes, text));
    add("text", { x: LEFT, y: 13, "font-weight": "bold", "font-size": 12, fill: "currentColor" }, title);
    add("path", { d: `M${LEFT},${TOP}V${H - BOTTOM}H${W - RIGHT}`, fill: "none", stroke: "currentColor" });
    for (const v of ticksY) {
      add("text", { x: LEFT - 5, y: y(v) + 4, "text-anchor": "end", "font-size": 10, fill: "currentColor" }, number(v));
    }
    for (let j = 0; j <= 4; j++) {
      const v = x0 + (x1 - x0) * j / 4;
      add("text", { x: x(v), y: H - BOTTOM + 14, "text-anchor": "middle", "font-size": 10, fill: "currentColor" }, number(v, 2));
    }
    add("text", { x: (LEFT + W - RIGHT) / 2, y: H - 6, "text-anchor": "middle", "font-size": 11, fill: "currentColor" }, xLabel);
    const line = (points, style) => add("path", { d: "M" + points.map(([u, v]) => `${x(u)},${y(v)}`).join("L"), fill: "none", ...style });
    const steps = (edges, heights, style) => {
      const points = heights.flatMap((h, j) => [[edges[j], h], [edges[j + 1], h]]);
      return line([[edges[0], y0], ...points, [edges[edges.length - 1], y0]], style);
    };
    return { add, x, y, line, steps };
  };

  const [lossSvg, marginSvg, knapsackSvg] = root.querySelectorAll("svg");
  const [radiusSlider, tauSlider, kSlider] = root.querySelectorAll("input");
  const spread = margins[n - 1] - margins[0] || 1;
  const settings = () => {
    const tau = spread * 10 ** (+tauSlider.value / 25 - 3), a = margins[0] - tau;
    const everything = margins.reduce((sum, x) => sum + x - a, 0) / n;  // the radius from which all pairs lie at a
    return { tau, everything, radius: everything * 10 ** (+radiusSlider.value / 50 - 4), k: data.pieces[+kSlider.value] };
  };

  const draw = () => {
    const { tau, everything, radius, k } = settings(), found = solve(radius, tau, k), { a, b, loss, moved } = found;
    const outputs = root.querySelectorAll("output");
    const shown = [`${number(radius)}${radius >= everything ? ": everything has moved" : ""}`, number(tau), k === null ? "exact loss" : k];
    shown.forEach((text, j) => { outputs[j].textContent = text; });
    const last = moved.reduce((end, t, i) => t > 0 ? i : end, -1);
    const grid = Array.from({ length: 81 }, (_, j) => a + (b - a) * j / 80), top = exact(a);

    let p = panel(lossSvg, "Loss, and the chord of the last pair", "margin ξ (reward units)", [a, b], [0, 1.1 * top], [0, top / 2, top]);
    p.line(grid.map(x => [x, exact(x)]), { stroke: "currentColor", "stroke-dasharray": "2 3" });
    p.line(grid.map(x => [x, loss(x)]), { stroke: "currentColor", "stroke-width": 1.5 });
    if (last >= 0) {
      p.line([[a, loss(a)], [margins[last], loss(margins[last])]], { stroke: COLORS.follower, "stroke-width": 2.5 });
    }
    for (const [value, color] of [[found.nominal, COLORS.leader], [found.value, COLORS.follower]]) {
      p.line([[a, value], [b, value]], { stroke: color });
    }

    const bins = 36, edges = Array.from({ length: bins + 1 }, (_, j) => a + (b - a) * j / bins), before = Array(bins).fill(0), after = Array(bins).fill(0);
    margins.forEach((x, i) => {
      const bin = Math.min(bins - 1, Math.floor((x - a) / (b - a) * bins));
      before[bin] += 1, after[bin] += 1 - moved[i], after[0] += moved[i];
    });
    const decades = [0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000].filter(v => v <= n);
    p = panel(marginSvg, "Margins before and after", "margin ξ (reward units)", [a, b], [0, n], decades, v => Math.asinh(v));
    p.steps(edges, before, { fill: COLORS.sky, "fill-opacity": 0.5, stroke: "none" });
    p.steps(edges, after, { stroke: COLORS.follower, "stroke-width": 1.8 });

    const steepest = (loss(a) - loss(margins[0])) / (margins[0] - a || 1), cells = [];
    let spent = 0;
    for (let i = 0; i < n; i++) {
      const distance = margins[i] - a;
      if (distance > 0) cells.push([spent, spent += distance / n, (loss(a) - loss(margins[i])) / distance]);
    }
    const flattest = cells.length ? cells[cells.length - 1][2] : 0, room = Math.max(1e-3, steepest - flattest) / 10;
    p = panel(knapsackSvg, "Knapsack: steepest chords first", "transport (reward units per pair)", [0, everything], [flattest - room, steepest + room], [flattest, (flattest + steepest) / 2, steepest]);
    const base = p.y(flattest - room);
    const taken = cells.filter(([from]) => from < radius).map(([from, to, s]) => `M${p.x(from)},${base}V${p.y(s)}H${p.x(Math.min(to, radius))}V${base}`);
    p.add("path", { d: taken.join("") || "M0,0", fill: COLORS.follower, "fill-opacity": 0.35 });
    p.line(cells.flatMap(([from, to, s]) => [[from, s], [to, s]]), { stroke: COLORS.reference });
    const share = moved.reduce((sum, t) => sum + t, 0) / n;
    const [worst, mean, rest] = root.querySelector(".reading").children;
    worst.textContent = `worst-case mean ${number(found.value, 5)}`, mean.textContent = `mean ${number(found.nominal, 5)}`;
    rest.textContent = `the adversary gains ${number(found.value - found.nominal)} nats; ` +
      `${number(100 * share)}% of the mass lies at a = ${number(a)}; price λ* = ${number(found.price, 4)}`;
    const shownPairs = moved.reduce((all, t, i) => t > 0 && data.pairs[order[i]] ? [...all, i] : all, []).slice(-3).reverse();
    root.querySelector("tbody").replaceChildren(...shownPairs.map(i => {
      const row = document.createElement("tr"), { chosen, rejected } = data.pairs[order[i]];
      for (const text of [number(margins[i]), `${Math.round(100 * moved[i])}%`, chosen, rejected]) row.insertCell().textContent = text;
      return row;
    }));
    root.querySelector("table").style.display = shownPairs.length ? "" : "none";
  };
  root.querySelectorAll("input").forEach(slider => slider.addEventListener("input", draw));
  root.start = (radius, tau) => {
    const at = (low, value, high) => Math.round(Math.min(high, Math.max(low, value)));
    tauSlider.value = at(0, 25 * (Math.log10(tau / spread) + 3), 100);
    radiusSlider.value = at(0, 50 * (Math.log10(radius / settings().everything) + 4), 200);
    draw();
  };
  root.start(data.radius, data.tau);
}

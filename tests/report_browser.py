#!/usr/bin/env python3
"""Looks at the report's page in headless Chromium: tests/report_browser.py LINNET RUN FOLDER
RUN is a finished run, whose folder is the pattern for 60 runs of 200 epochs. Ends with 77 where there is no Chromium or
no Selenium, with 1 and what is wrong, or with 0."""
import base64, io, json, math, pathlib, random, shutil, subprocess, sys, time

try:
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.support.ui import Select
except ImportError:
    print("there is no Selenium")
    sys.exit(77)
chromium, driver = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
if not chromium or not driver:
    print("there is no Chromium or no chromedriver")
    sys.exit(77)

linnet, run, folder = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
GROUPS, SEEDS, EPOCHS, LAYERS = 12, 5, 200, 22


def make_runs(target):
    """60 runs of 200 epochs with the curves that such runs have."""
    config = (run / "config.toml").read_text()
    predictions = json.loads((run / "predictions.json").read_text())
    for g in range(GROUPS):
        for seed in range(SEEDS):
            rng = random.Random(100 * g + seed)
            at = target / f"recipe{g:02}_s{seed}"
            at.mkdir(parents=True)
            lines = ["seed = %d" % seed if l.startswith("seed = ") else "epochs = %d" % EPOCHS if l.startswith("epochs = ") and "batch" not in l else
                     "lr = %g" % (0.01 * (g + 1)) if l.startswith("lr = ") else l for l in config.splitlines()]
            (at / "config.toml").write_text("\n".join(lines) + "\n")
            shutil.copy(run / "env.json", at)
            (at / "predictions.json").write_text(json.dumps(predictions))
            metrics, timing, wall = [], [], 0.0
            for e in range(1, EPOCHS + 1):
                acc = 0.9 - 0.5 * math.exp(-e / (10 + g)) + 0.01 * rng.random()
                for s in range(7):
                    step = (e - 1) * 351 + 50 * (s + 1)
                    metrics.append({"schema": 1, "kind": "step", "epoch": e - 1, "step": step, "train/loss": 2 * (1 - acc) + 0.1 * rng.random(),
                                    "train/acc": acc, "lr": 0.05 * (1 + math.cos(math.pi * e / EPOCHS)), "grad_norm": 1 + rng.random(),
                                    "velocity_norm": 5 + rng.random(), "update_norm": 0.1 + rng.random() / 10, "reversed_share": 0.15, "clipped_share": 0.3})
                    timing.append({"kind": "step", "epoch": e - 1, "step": step, "wall_s": wall + s, "img_per_s": 900 + 100 * rng.random()})
                wall += 40 + 5 * rng.random()
                row = {"schema": 1, "kind": "epoch", "epoch": e, "step": e * 351, "train/loss": 2 * (1 - acc), "train/acc": acc + 0.02,
                       "val/loss": 2.2 * (1 - acc), "val/acc": acc, "lr": 0.05 * (1 + math.cos(math.pi * e / EPOCHS))}
                row.update({f"update_ratio/layer{k}": 1e-3 * math.exp(rng.gauss(0, 0.3) - e / 100) for k in range(LAYERS)})
                metrics.append({"schema": 1, "kind": "layers", "epoch": e, "step": e * 351, "effective_lr/1e-03": 1} |
                               {f"{norm}/layer{k}": 0.1 + rng.random() for norm in ("grad_norm", "velocity_norm", "update_norm") for k in range(LAYERS)})
                metrics.append(row | {"hash": "%032x" % rng.getrandbits(128)})
                timing.append({"kind": "epoch", "epoch": e, "step": e * 351, "wall_s": wall, "img_per_s": 950 + 50 * rng.random()})
            (at / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in metrics))
            (at / "timing.jsonl").write_text("".join(json.dumps(r) + "\n" for r in timing))
            (at / "summary.json").write_text(json.dumps({"status": "done", "epoch": EPOCHS, "step": EPOCHS * 351, "val/acc": acc, "test/acc": acc - 0.005,
                                                         "test/loss": 0.4, "wall_s": wall}))


failures = []


def expect(holds, what):
    if not holds:
        failures.append(what)
        print("FAILED:", what)


def open_page(page, width):
    options = Options()
    options.binary_location = chromium
    for a in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--window-size={width},1000"):
        options.add_argument(a)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    if width < 500:  # a window is never so narrow: what a phone would do
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": width, "height": 800, "deviceScaleFactor": 2, "mobile": True})
    browser.get(page.resolve().as_uri())
    return browser


# Canvases without data, and those in which no pixel is drawn but the frame.
CANVASES = """return [...document.querySelectorAll('canvas')].map(c => {
  const p = c.getContext('2d').getImageData(0, 0, c.width, c.height).data, colours = new Set();
  for (let i = 0; i < p.length; i += 4) if (p[i + 3] > 200) colours.add(p[i] << 16 | p[i + 1] << 8 | p[i + 2]);
  return {id: c.id, points: Number(c.dataset.points), colours: colours.size}; })"""
MOST_X = "return Math.max(...[...charts.get('val-acc').data.datasets].flatMap(d => d.data.map(p => p.x)))"
SETS = "return charts.get('val-acc').data.datasets.length"


def look_at(page, name, groups, seeds):
    size = page.stat().st_size
    expect(size < 5e6, f"{name}: the file has {size} bytes")
    browser = open_page(page, 1200)
    loads = []
    for _ in range(3):  # the first page that a browser opens also waits for the browser; other jobs may disturb one
        browser.refresh()
        loads.append(browser.execute_script("const t = performance.getEntriesByType('navigation')[0]; return t.loadEventEnd - t.startTime"))
    load = min(loads)
    expect(0 < load < 2000 * float(sys.argv[4] if len(sys.argv) > 4 else 1), f"{name}: it took {load:.0f} ms to open")
    canvases = browser.execute_script(CANVASES)
    panels = {"val-acc", "val-loss", "train-acc", "train-loss", "gap", "lr", "grad-norm", "update-norm", "reversed-share", "img-per-s", "update-ratio",
              "layer-gradients", "layer-updates"}
    if groups > 1:  # plain SGD has neither a velocity nor effective rates
        panels |= {"velocity-norm", "clipped-share", "layer-velocities", "effective-lr"}
    expect({c["id"] for c in canvases} == panels, f"{name}: the panels are {[c['id'] for c in canvases]}")
    for c in canvases:
        expect(c["points"] > 0 and c["colours"] > 3, f"{name}: the panel {c['id']} is empty: {c}")
    expect(len(browser.find_elements("css selector", "#final tbody tr")) == groups, f"{name}: the final table has not {groups} rows")
    expect(len(browser.find_elements("css selector", "#confusion tr")) == 11, f"{name}: no confusion matrix of ten classes")
    pictures = browser.find_elements("css selector", "#mistakes img")
    expect(pictures and all(p.get_property("naturalWidth") > 0 for p in pictures), f"{name}: no pictures of mistakes")

    # The switches: the axis by its largest x, bands by the lines that are drawn, groups, the theme.
    x = {}
    for unit in ("epoch", "step", "seconds"):
        Select(browser.find_element("id", "x")).select_by_value(unit)
        x[unit] = browser.execute_script(MOST_X)
    expect(len(set(x.values())) == 3 and x["step"] > x["epoch"], f"{name}: the x axis does not switch: {x}")
    if seeds > 1:
        lines = {}
        for band in ("range", "half", "seeds", "none"):
            Select(browser.find_element("id", "band")).select_by_value(band)
            lines[band] = browser.execute_script(SETS)
        expect(lines == {"range": 3 * groups, "half": 3 * groups, "seeds": (1 + seeds) * groups, "none": groups}, f"{name}: bands {lines}")
        browser.find_element("css selector", "#legend input").click()
        expect(browser.execute_script(SETS) == groups - 1, f"{name}: a group cannot be hidden")
    back = lambda: browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    before = back()
    browser.find_element("id", "theme").click()
    expect(back() != before, f"{name}: light and dark look the same")
    if groups > 1:
        Select(browser.find_element("id", "examined")).select_by_index(1)
        Select(browser.find_element("id", "layers-of")).select_by_index(1)
    errors = [e for e in browser.get_log("browser") if e["level"] in ("SEVERE", "WARNING")]
    expect(not errors, f"{name}: the console says {errors}")
    expect(len(base64.b64decode(browser.print_page())) > 10000, f"{name}: it cannot be printed")
    browser.quit()

    phone = open_page(page, 390)
    wide = phone.execute_script("return document.documentElement.scrollWidth")
    expect(wide <= 390, f"{name}: on a phone of 390 points the page is {wide} wide")
    phone.quit()
    print(f"{name}: {size / 1e6:.2f} MB, open after {load:.0f} ms")


make_runs(folder / "sixty")
for name, source, groups, seeds in (("one run", run, 1, 1), ("60 runs of 200 epochs", folder / "sixty", GROUPS, SEEDS)):
    page = folder / (name.split()[0] + ".html")
    began = time.time()
    subprocess.run([linnet, "report", str(source), "-o", str(page)], check=True, stdout=subprocess.DEVNULL)
    print(f"{name}: made in {time.time() - began:.1f} s")
    look_at(page, name, groups, seeds)
sys.exit(1 if failures else 0)

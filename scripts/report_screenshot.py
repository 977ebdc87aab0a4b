#!/usr/bin/env python3
"""Pictures of a report's page down to its curves, light and dark (never of the mistakes: those are images of the data set).
  scripts/report_screenshot.py report.html docs/report        # writes docs/report-light.png and docs/report-dark.png"""
import pathlib
import shutil
import sys

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

page, out = pathlib.Path(sys.argv[1]).resolve().as_uri(), sys.argv[2]
options = Options()
options.binary_location = shutil.which("chromium")
for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
    options.add_argument(argument)
browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
for theme in ("light", "dark"):
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]})
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 1100, "height": 800, "deviceScaleFactor": 1, "mobile": False})
    browser.get(page)
    height = browser.execute_script("return Math.ceil(document.getElementById('panels').getBoundingClientRect().bottom + 8)")
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 1100, "height": height, "deviceScaleFactor": 1, "mobile": False})
    browser.save_screenshot(f"{out}-{theme}.png")
browser.quit()

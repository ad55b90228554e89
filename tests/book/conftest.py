"""Chromium, which records its errors and its requests."""

import shutil

import pytest
from selenium import webdriver

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--window-size=1280,900",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for flag in FLAGS:
        options.add_argument(flag)
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture
def emulate(browser):
    """Return a function that gives a command of Chrome's emulation, which ends with the test."""

    def give(command, **settings):
        browser.execute_cdp_cmd(f"Emulation.{command}", settings)

    yield give
    give("clearDeviceMetricsOverride")
    give("setEmulatedMedia", features=[])
    give("setScriptExecutionDisabled", value=False)

"""A moving picture of the page that trains: 400 steps, up to the right answer.

    python -m lessons.book.explorer_animation   # writes figures/explorer.gif and explorer.png

Half a minute. Chromium opens the page, trains, and each frame is a screenshot of it.
"""

import base64
import io
import shutil
import tempfile
import time
from pathlib import Path

from PIL import Image
from selenium import webdriver

from lessons.book import explorer

FIGURES = explorer.PICTURE.parent
WIDTH = 1080
FLAGS = "--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={WIDTH},900"
# what a small picture has no room for
SHORT = """h1, h1 + p, #x-experiments, .x-hint:has(#x-bytes), .x-live ul, #x-note, #x-rows-hint,
#x-presets, .x-predict,
.x-settings label:has(#x-start), .x-settings label:has(#x-seed), .x-hint:has(#x-watch)
{ display: none !important; }
.explorer .x-live { grid-template-columns: 14em minmax(0, 1fr) 21em; }
body { padding: 0.3em 0.8em; }
"""
STOPS = [*range(0, 60, 5), *range(60, 220, 10), 240, 280, 320, 360, 400]
SECONDS = {0: 1.5, 400: 4.0}  # of a frame; 0.25 of the others
STEPS_TO = "send('train', { steps: arguments[0] - curve.at(-1).step })"
SEEN = "return curve.at(-1)?.step === arguments[0]"
BOX = """const [bar, live] = ['.x-bar', '.x-live'].map((name) =>
    document.querySelector(name).getBoundingClientRect());
    return [bar.top, live.bottom];"""


def screenshots(folder):
    """Return an image of the page at each of the STOPS."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in FLAGS:
        options.add_argument(flag)
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        driver.get((folder / "index.html").as_uri())
        style = "document.head.append(element('style', {}, arguments[0]))"
        driver.execute_script(style, SHORT)
        for step in STOPS:
            if step:
                driver.execute_script(STEPS_TO, step)
            while not driver.execute_script(SEEN, step):
                time.sleep(0.05)
            top, bottom = driver.execute_script(BOX)
            clip = {"x": 0, "y": top, "width": WIDTH, "height": bottom - top, "scale": 1}
            png = driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip})["data"]
            yield Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    finally:
        driver.quit()


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "explorer"
        shutil.copytree(explorer.PAGE, folder)
        explorer.write(folder)
        pictures = list(screenshots(folder))
    height = min(picture.height for picture in pictures)  # an answer of two lines is higher
    whole = [picture.crop((0, 0, WIDTH, height)) for picture in pictures]
    colours = whole[-1].quantize(160, Image.Quantize.FASTOCTREE)  # keeps the rare, strong ones
    frames = [page.quantize(palette=colours, dither=Image.Dither.NONE) for page in whole]
    durations = [int(1000 * SECONDS.get(step, 0.25)) for step in STOPS]
    gif = FIGURES / "explorer.gif"
    frames[0].save(
        gif, save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=True
    )
    # for readers who prefer no motion, or have no JavaScript
    whole[-1].quantize(160, Image.Quantize.FASTOCTREE).save(explorer.PICTURE)
    print(f"{gif}: {len(frames)} frames of {WIDTH}×{height}, {gif.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

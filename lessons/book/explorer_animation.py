"""A moving picture of the explorer: training, the rank, α, the bits of the base, and the merge.

    python -m lessons.book.explorer_animation   # writes figures/explorer.gif and explorer.png

Half a minute. Chromium opens the page, and each frame is a screenshot of it.
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
WIDTH = 860
FLAGS = "--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={WIDTH},800"
# what a small picture has no room for
SHORT = """.x-hint, .x-numbers, .x-tour, .x-range:has(#x-place), .x-row button,
h1, body > p:first-of-type, .explorer fieldset:has(.x-switches), #x-attention,
#x-attention-words, figcaption, .explorer p:has(#x-attention-layer) { display: none !important; }
.explorer canvas { max-width: 9em; } #x-status { min-height: 1.4em; }
.x-columns > div:has(#x-delta) {
  display: grid; grid-template-columns: 10em 1fr; gap: 0 1em; align-content: start;
}
.x-columns h3:has(+ #x-values), #x-values { grid-column: 2; }
.explorer p:has(#x-name) { grid-column: 1 / 3; }
figure:has(#x-delta) { grid-row: 2 / 4; } figure:has(#x-kept) { grid-row: 4; }
#x-rest::before { content: "ΔW after the merge"; font-size: 0.85em; }
.x-answer { min-height: 1.6em; } body { padding-top: 0.6em; }
"""
FRAMES = [  # (changes of the settings, seconds)
    *(({"step": step}, 1.0) for step in explorer.STEPS), ({}, 1.5),
    *(({"rank": k}, 0.8) for k in (6, 4, 3, 2, 1)), ({}, 0.8),
    *(({"factor": a}, 0.8) for a in (0.5, 1, 2, 4)), ({}, 0.8),
    ({"bits": "2 bits"}, 1.5), ({"bits": "int4"}, 1.2), ({}, 0.8),
    ({"step": 10}, 1.2), ({"step": 10, "merged": True}, 2.5), ({"merged": True}, 2.0), ({}, 3.0),
]  # fmt: skip
APPLY = "applySettings({ ...ALL, ...arguments[0] })"
DONE = "return document.getElementById('x-loss').textContent.includes('base')"


def screenshots(folder, frames):
    """Return an image of the page for each of the frames."""
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
        for settings, _ in frames:
            driver.execute_script(APPLY, settings)
            while not driver.execute_script(DONE):
                time.sleep(0.05)
            size = "return document.querySelector('.explorer').getBoundingClientRect().bottom"
            height = driver.execute_script(size)
            clip = {"x": 0, "y": 0, "width": WIDTH, "height": height, "scale": 1}
            shot = {"captureBeyondViewport": True, "clip": clip}
            png = driver.execute_cdp_cmd("Page.captureScreenshot", shot)["data"]
            yield Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    finally:
        driver.quit()


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "explorer"
        shutil.copytree(explorer.PAGE, folder)
        explorer.write(folder)
        pictures = list(screenshots(folder, FRAMES))
    height = max(picture.height for picture in pictures)
    whole = [Image.new("RGB", (WIDTH, height), "white") for _ in pictures]
    for page, picture in zip(whole, pictures):
        page.paste(picture)
    # from the last merge, which has both pictures of ΔW; also the rare, strong colours
    colours = whole[-2].quantize(128, Image.Quantize.MAXCOVERAGE)
    frames = [page.quantize(palette=colours, dither=Image.Dither.NONE) for page in whole]
    gif = FIGURES / "explorer.gif"
    durations = [int(1000 * seconds) for _, seconds in FRAMES]
    frames[0].save(
        gif, save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=True
    )
    pictures[-1].quantize(64).save(
        explorer.PICTURE
    )  # for readers who prefer no motion, or have no JavaScript
    print(f"{gif}: {len(frames)} frames of {WIDTH}×{height}, {gif.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

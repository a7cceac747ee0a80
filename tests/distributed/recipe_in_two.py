"""Run a recipe as one of several processes: ``recipe_in_two.py RANK RECIPE FLAGS``."""

import runpy
import sys
from pathlib import Path

_, _, recipe, *flags = sys.argv
sys.argv = [recipe, *flags]
runpy.run_path(str(Path(__file__).parents[2] / "recipes" / recipe), run_name="__main__")

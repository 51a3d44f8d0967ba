"""Holds kas files against kas' own schema, and looks whether what they name of their own tree is
there: layers, and files that they include.

    kas_schema.py TREE
"""

import sys
from pathlib import Path

import jsonschema
import yaml
from kas.configschema import CONFIGSCHEMA

tree = Path(sys.argv[1])


def faults_of(file):
    config = yaml.safe_load(file.read_text())
    errors = list(jsonschema.Draft7Validator(CONFIGSCHEMA).iter_errors(config))
    for error in errors:
        yield f"{'.'.join(map(str, error.path))}: {error.message}"
    if errors:
        return
    for repository in config["repos"].values():
        for layer in repository.get("layers", {}) if "url" not in repository else ():
            if not (tree / layer / "conf/layer.conf").is_file():
                yield f"{layer} is no layer of this tree"
    for included in config["header"].get("includes", []):
        if not (tree / included).is_file():
            yield f"{included} is no file of this tree"


files = sorted((tree / "yocto").glob("kas*.yml"))
faults = [f"{file.name}: {fault}" for file in files for fault in faults_of(file)]
if len(files) < 2:
    faults.append(f"kas files of this tree: {[file.name for file in files]}")
print("\n".join(faults))
sys.exit(bool(faults))

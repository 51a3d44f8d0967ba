"""Holds a kas file against kas' own schema, and looks whether the layers of its own tree are there.

    kas_schema.py TREE
"""

import sys
from pathlib import Path

import jsonschema
import yaml
from kas.configschema import CONFIGSCHEMA

tree = Path(sys.argv[1])
config = yaml.safe_load((tree / "yocto/kas.yml").read_text())
faults = [
    f"kas.yml: {'.'.join(map(str, error.path))}: {error.message}"
    for error in jsonschema.Draft7Validator(CONFIGSCHEMA).iter_errors(config)
]
if not faults:
    for repository in config["repos"].values():
        for layer in repository.get("layers", {}) if "url" not in repository else ():
            if not (tree / layer / "conf/layer.conf").is_file():
                faults.append(f"kas.yml: {layer} is no layer of this tree")
print("\n".join(faults))
sys.exit(bool(faults))

"""Files and command lines that are broken, hostile or too large: what .dev_scripts/hostile_inputs.py hands the tools."""

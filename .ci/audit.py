"""Known vulnerabilities of pinned packages: each is a line and exit 1. Where nobody could be asked, one line says so.

    python .ci/audit.py FILE_OF_PIP_FREEZE
"""

import json
import subprocess
import sys

SECONDS = 60  # for all packages; where no service answers, the first one's 5 seconds end it


def ask(pinned: str) -> list[dict]:
    """What pip-audit says of each package; nothing if it could not ask."""
    command = ["pip-audit", "--requirement", pinned, "--no-deps", "--disable-pip", "--timeout", "5",
               "--progress-spinner", "off", "--format", "json"]  # fmt: skip
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        return json.loads(answer.stdout)["dependencies"]
    except (OSError, subprocess.TimeoutExpired, json.JSONDecodeError) as error:
        print(f"audit: pip-audit gave no report ({type(error).__name__})")
        return []


def main(pinned: str) -> int:
    packages = ask(pinned)
    known = [package for package in packages if "vulns" in package]
    if not known:
        print("audit: NOT DONE, no service could be asked for known vulnerabilities")
        return 0
    found = [(package, vulnerability) for package in known for vulnerability in package["vulns"]]
    for package, vulnerability in found:
        fixed = ", ".join(vulnerability["fix_versions"]) or "none yet"
        print(f"audit: {package['name']} {package['version']} has {vulnerability['id']}, fixed in {fixed}")
    unknown = [package["name"] for package in packages if "vulns" not in package]
    rest = f"; not known there: {', '.join(unknown)}" if unknown else ""
    print(f"audit: {len(known)} packages, {len(found)} known vulnerabilities{rest}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

#!/usr/bin/env python3
"""Shows that the simulation of the replicated store finds bugs: breaks the code in one way at a time and runs seeds until one fails.

  tests/sim_mutants.py [--seeds N] [MUTANT ...]

Each mutant is a text in a source file and what takes its place; the copy that is broken and built is target/mutants/src, the repository
itself is left alone. Exit status: 0 every mutant was caught, 1 one was not, 2 one does not apply any more or does not build.
"""
import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
COPY = ROOT / "target/mutants/src"

# Hundreds of runs: worth the longer build.
FASTER = [arg for name in ("openraft", "turmoil", "ikada-raft", "ikada-store") for arg in ("--config", f"profile.dev.package.{name}.opt-level=1")]

# name: (what is broken, file, text, its replacement)
MUTANTS = {
    "fsync": (
        "the log is acknowledged without a sync",
        "crates/store/src/log/file.rs",
        "let done = file.sync_data();",
        "let done: std::io::Result<()> = Ok(drop(file));",
    ),
    "vote": (
        "a vote is kept in memory and never written",
        "crates/raft/src/log.rs",
        "Job::Vote(hard, _) => self.retried(|| log.save_hard_state(*hard)).await,",
        "Job::Vote(..) => Ok(()),",
    ),
    "idempotency": (
        "an idempotency key that was used before is not looked for",
        "crates/world/src/apply.rs",
        "if let Some(known) = self.outcomes.get(&command.id) {",
        "if let Some(known) = self.outcomes.get(&[0; 16]) {",
    ),
}


def tracked():
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True)
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def copy_sources():
    """Copies what differs, so that only what a mutant touches is built again. The copy has a version of its own: cargo shares what is
    built of dependencies, and must never take a broken crate for the real one."""
    names = set(tracked())
    for name in names - {"Cargo.lock"}:
        target = COPY / name
        content = (ROOT / name).read_bytes()
        if name == "Cargo.toml":
            content, count = re.subn(rb'(?m)^version = "([^"]+)"$', rb'version = "\1-mutant"', content, count=1)
            if count != 1:
                sys.exit("Cargo.toml has no version of the workspace")
        if not target.exists() or target.read_bytes() != content:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    if not (COPY / "Cargo.lock").exists():
        shutil.copyfile(ROOT / "Cargo.lock", COPY / "Cargo.lock")
    for path in COPY.rglob("*"):
        if path.is_file() and str(path.relative_to(COPY)) not in names:
            path.unlink()


def run(name, seeds):
    what, file, text, replacement = MUTANTS[name]
    copy_sources()
    path = COPY / file
    code = path.read_text()
    if code.count(text) != 1:
        print(f"{name}: {file} has {code.count(text)} times: {text}")
        return 2
    path.write_text(code.replace(text, replacement))
    env = dict(os.environ, CARGO_TARGET_DIR=str(ROOT / "target"), IKADA_SIM_SEEDS=str(seeds), IKADA_SIM_FAILURES="1")
    cargo = ["cargo", *FASTER, "test", "--quiet", "--offline", "-p", "ikada-raft", "--test", "sim", "--", "--exact", "many", "--nocapture"]
    done = subprocess.run(cargo, cwd=COPY, env=env, capture_output=True, text=True)
    caught = re.search(r"^seed (\d+): (.*)$", done.stdout, re.M)
    if caught:
        print(f"{name}: {what}\n  caught by seed {caught[1]}: {caught[2]}")
        return 0
    if "runs in" in done.stdout:
        print(f"{name}: {what}\n  NOT caught by {seeds} seeds")
        return 1
    print(f"{name}: it does not build\n{done.stderr[-3000:]}")
    return 2


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=300)
    parser.add_argument("mutant", nargs="*", choices=[[], *MUTANTS])
    args = parser.parse_args()
    worst = 0
    for name in args.mutant or MUTANTS:
        worst = max(worst, run(name, args.seeds))
        sys.stdout.flush()
    return worst


if __name__ == "__main__":
    sys.exit(main())

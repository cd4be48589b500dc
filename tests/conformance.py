#!/usr/bin/env python3
"""Runs the whole conformance corpus against a build of this repository and prints a table per suite.

  tests/conformance.py [--suite GLOB ...] [--case GLOB ...] [--jobs N] [-v]

Functions are evaluated by conformance-eval. REST cases run against `ikada-cp run --load BUNDLE --api-only`: one process for each bundle,
mode and configuration, started anew after a case that changed the store. Cases are compared by the corpus's own run.py.

  passed   as expected
  failed   anything else
  skipped  needs what is not given (kumactl, connected proxies, several control planes) or a function that is not built yet
  left     answered 501, or failed with resources of a kind in its bundle that is not built yet (listed below the table)

Exit status: 0 nothing failed, and every suite named in tests/conformance.toml passed completely; 1 otherwise; 2 could not run.
Corpus: IKADA_CONFORMANCE_DIR, else ../shared/conformance beside the repository.
"""
import argparse
import collections
import concurrent.futures
import fnmatch
import hashlib
import importlib.util
import itertools
import json
import os
import pathlib
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parent.parent
# A group of cases that share a process is cut into pieces of this size, so that the workers stay busy until the end.
PIECE = 40
START_TIMEOUT = 30

seen = threading.local()  # the replies of the case that this thread runs
running = set()
running_lock = threading.Lock()
stopping = threading.Event()


def die(text):
    print('conformance: ' + text, file=sys.stderr)
    sys.exit(2)


def free_port(counter=itertools.count(os.getpid() * 7919), first=10_000, count=22_000):
    """a port that is free now, from below the kernel's ephemeral ports: no outgoing connection can take it before it is used"""
    for _ in range(count):
        port = first + next(counter) % count
        try:
            for family, address in ((socket.AF_INET6, '::'), (socket.AF_INET, '0.0.0.0')):
                with socket.socket(family, socket.SOCK_STREAM) as s:
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    s.bind((address, port))
            return port
        except OSError:
            pass
    die('no free port between %d and %d' % (first, first + count))


def load_runner(corpus):
    """the corpus's run.py as a module, with its HTTP calls recorded"""
    spec = importlib.util.spec_from_file_location('corpus_run', corpus / 'run.py')
    run = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode = True
    spec.loader.exec_module(run)
    plain = run.http

    def http(method, url, *args, **kwargs):
        status, body = plain(method, url, *args, **kwargs)
        getattr(seen, 'replies', []).append((method, status, url))
        return status, body

    run.http = http
    return run


def environment(case, api_port, dp_port, data):
    """of a control plane for a case; settings of the caller's shell do not leak in"""
    env = {k: v for k, v in os.environ.items() if not k.startswith(('KUMA_', 'IKADA_'))}
    mode = case.get('mode') or 'zone'
    env['KUMA_MODE'] = 'global' if mode == 'global' else 'zone'
    if mode != 'global':
        env['KUMA_MULTIZONE_ZONE_NAME'] = case.get('zone') or 'default'
    if mode == 'zone-federated':
        # Nothing listens there: a federated zone works without its global.
        env['KUMA_MULTIZONE_ZONE_GLOBAL_ADDRESS'] = 'grpcs://127.0.0.1:1'
    env.update(
        KUMA_API_SERVER_HTTP_PORT=str(api_port), KUMA_API_SERVER_HTTPS_ENABLED='false', KUMA_DP_SERVER_PORT=str(dp_port),
        KUMA_DIAGNOSTICS_SERVER_PORT='0', IKADA_RAFT_LISTEN=f'127.0.0.1:{free_port()}', IKADA_DATA_DIR=str(data), RUST_BACKTRACE='1')
    env.update(case.get('env') or {})
    return env


class Worker:
    """runs cases one after the other; keeps the control plane while the next case can use it"""

    def __init__(self, run, options, scratch):
        self.run, self.options, self.scratch = run, options, scratch
        worker = self

        class Cp(run.Cp):
            key = None
            data = None

            def launch(self, case, bundle):
                key = worker.key(case, bundle)
                if self.proc and self.key == key and self.proc.poll() is None:
                    return
                self.stop_for_good()
                self.key = key
                for attempt in range(3):
                    if self.start(case, bundle):
                        return
                raise run.Fail('control plane did not start: ' + self.last_words())

            def start(self, case, bundle):
                """False when the process ended at once, which a port taken in between explains"""
                api, dp = free_port(), free_port()
                self.data = tempfile.mkdtemp(dir=worker.scratch)
                self.log = os.path.join(self.data, 'log')
                self.api, self.dp = 'http://127.0.0.1:%d' % api, 'https://127.0.0.1:%d' % dp
                argv = [worker.options.cp, 'run', '--api-only']
                if bundle != os.devnull:
                    argv += ['--load', bundle]
                with open(self.log, 'wb') as log:
                    self.proc = subprocess.Popen(argv, env=environment(case, api, dp, os.path.join(self.data, 'store')), stdout=log, stderr=log,
                                                 stdin=subprocess.DEVNULL)
                with running_lock:
                    running.add(self.proc)
                end = time.monotonic() + START_TIMEOUT
                while time.monotonic() < end and not stopping.is_set():
                    if self.proc.poll() is not None:
                        return False
                    try:
                        # Any answer means that the bundle is loaded; 503 is given while there is no leader yet.
                        if run.http('GET', self.api + '/')[0] != 503:
                            return True
                    except OSError:
                        pass
                    time.sleep(0.02)
                raise run.Fail('control plane not ready after %d s: %s' % (START_TIMEOUT, self.last_words()))

            def last_words(self):
                try:
                    text = pathlib.Path(self.log).read_text(errors='replace').strip()
                except OSError:
                    return 'no log'
                return ' | '.join(text.split('\n')[-3:])[-400:] or 'it said nothing'

            def stop(self):
                """called by run.py before every launch: the process stays"""

            def stop_for_good(self):
                if self.proc:
                    self.proc.terminate()
                    try:
                        self.proc.wait(5)
                    except subprocess.TimeoutExpired:
                        self.proc.kill()
                        self.proc.wait()
                    with running_lock:
                        running.discard(self.proc)
                if self.data and not worker.options.keep:
                    shutil.rmtree(self.data, ignore_errors=True)
                self.proc = self.data = self.key = None

        o = argparse.Namespace(
            api=None, dp=None, mode='zone', zone='default', preload_cmd=None, launch_cmd='own', eval_cmd=shlex.quote(options.eval) + ' {case}', start_timeout=START_TIMEOUT,
            timeout=30, proxies=False, no_diff=False, env_ok=False, relax=False, kumactl=options.kumactl)
        self.built = set(subprocess.run([options.eval, '--kinds'], capture_output=True, text=True, check=True).stdout.split())
        self.runner = run.Runner(o)
        self.runner.cp = Cp(o)

    def unbuilt_kinds(self, case):
        """kinds in the case's bundle that are not built: they are stored without their schema's defaults"""
        if not case.get('resources'):
            return []
        documents = self.run.yload_all((pathlib.Path(case['_dir']) / case['resources']).read_text())
        return sorted({d.get('type', '') for d in documents} - self.built)

    @staticmethod
    def key(case, bundle):
        content = b'' if bundle == os.devnull else pathlib.Path(bundle).read_bytes()
        return (hashlib.sha256(content).hexdigest(), case.get('mode'), case.get('zone'), json.dumps(case.get('env') or {}, sort_keys=True))

    def one(self, case):
        run = self.run
        seen.replies = []
        try:
            self.runner.run(case)
            result, message = 'passed', ''
        except run.Skip as e:
            result, message = 'skipped', str(e)
        except run.Fail as e:
            result, message = 'failed', str(e)
        except Exception as e:  # a case must not end the run: whatever its reply made run.py stumble over is a failure of that case
            result, message = 'failed', '%s: %s' % (type(e).__name__, e)
        not_built = [url for _, status, url in seen.replies if status == 501]
        if result == 'failed' and not_built:
            result, message = 'left', resource_path(not_built[0])
        elif result == 'failed' and (kinds := self.unbuilt_kinds(case)):
            result, message = 'left', kinds[0]
        if any(method != 'GET' and 200 <= status < 300 for method, status, _ in seen.replies):
            self.runner.cp.stop_for_good()
        return result, message

    def piece(self, cases):
        out = []
        try:
            for case in cases:
                if stopping.is_set():
                    break
                out.append((case, *self.one(case)))
        finally:
            self.runner.cp.stop_for_good()
        return out


def resource_path(url):
    """the part of a path that names the kind, and what is asked of it: meshtimeouts, dataplanes/_rules"""
    parts = urllib.parse.urlsplit(url).path.strip('/').split('/')
    if parts[0] == 'meshes' and len(parts) > 2:
        parts = parts[2:]
    return '/'.join(parts[:1] + [p for p in parts[1:] if p.startswith('_')])


def pieces(run, cases):
    """cases that can share a process together"""
    groups = collections.defaultdict(list)
    for c in cases:
        bundle = os.path.join(c['_dir'], c['resources']) if c.get('resources') else os.devnull
        key = Worker.key(c, bundle) if c['kind'] == 'rest' else c['kind']
        groups[key].append(c)
    out = [g[i:i + PIECE] for g in groups.values() for i in range(0, len(g), PIECE)]
    return sorted(out, key=len, reverse=True)


def read_cases(run, corpus, options):
    cases = []
    for d, dirs, files in os.walk(corpus):
        dirs.sort()
        if 'case.yaml' not in files:
            continue
        with open(os.path.join(d, 'case.yaml'), encoding='utf-8') as f:
            c = run.yload(f)
        c['_dir'] = d
        if options.suite and not any(fnmatch.fnmatch(c['suite'], p) for p in options.suite):
            continue
        if options.case and not any(fnmatch.fnmatch(c['id'], p) for p in options.case):
            continue
        cases.append(c)
    return cases


def table(results, complete):
    columns = ('passed', 'failed', 'skipped', 'left')
    rows = collections.defaultdict(collections.Counter)
    for case, result, _ in results:
        rows[case['suite']][result] += 1
    total = collections.Counter()
    line = '%-28s' + ' %7s' * len(columns) + '  %s'
    print((line % ('suite', *columns, '')).rstrip())
    for suite in sorted(rows):
        total.update(rows[suite])
        note = 'complete' if suite in complete else ''
        print((line % (suite, *(rows[suite][c] for c in columns), note)).rstrip())
    print((line % ('total', *(total[c] for c in columns), '')).rstrip())
    return rows, total


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--suite', action='append', default=[], metavar='GLOB')
    a.add_argument('--case', action='append', default=[], metavar='GLOB', help='<suite>/<case>')
    a.add_argument('--jobs', type=int, default=os.cpu_count() or 2, help='cases at a time [%(default)s]')
    a.add_argument('--cp', default=str(ROOT / 'target/debug/ikada-cp'), metavar='FILE', help='[%(default)s]')
    a.add_argument('--eval', default=str(ROOT / 'target/debug/conformance-eval'), metavar='FILE', help='[%(default)s]')
    a.add_argument('--kumactl', metavar='FILE', help='stock kumactl, for the suites kumactl-*')
    a.add_argument('--keep', action='store_true', help='keep data directories and logs')
    a.add_argument('--json', metavar='FILE', help='write the result of every case')
    a.add_argument('-v', '--verbose', action='store_true', help='say why cases were skipped or left')
    o = a.parse_args()

    corpus = pathlib.Path(os.environ.get('IKADA_CONFORMANCE_DIR') or ROOT.parent / 'shared/conformance')
    if not (corpus / 'run.py').is_file():
        die('no corpus in %s: set IKADA_CONFORMANCE_DIR' % corpus)
    for binary in (o.cp, o.eval):
        if not os.access(binary, os.X_OK):
            die('%s is missing: cargo build -p ikada-cp -p ikada-tests' % binary)
    if o.jobs < 1:
        die('--jobs must be at least 1')
    run = load_runner(corpus)
    complete = tomllib.loads((ROOT / 'tests/conformance.toml').read_text())['complete']
    cases = read_cases(run, corpus, o)
    if not cases:
        die('no such cases')
    unknown = [] if o.suite or o.case else sorted(set(complete) - {c['suite'] for c in cases})
    if unknown:
        die('tests/conformance.toml names suites that the corpus lacks: ' + ', '.join(unknown))

    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    scratch = tempfile.mkdtemp(prefix='ikada-conformance-')
    results, started = [], time.monotonic()
    pool = concurrent.futures.ThreadPoolExecutor(o.jobs)
    try:
        todo = [pool.submit(lambda p=p: Worker(run, o, scratch).piece(p)) for p in pieces(run, cases)]
        for done in concurrent.futures.as_completed(todo):
            for case, result, message in done.result():
                results.append((case, result, message))
                if result == 'failed' or o.verbose and result != 'passed':
                    print('%s %s\n     %s' % (result.upper(), case['id'], message[:1000]), flush=True)
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 2
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):  # nothing may interrupt the cleaning up
            signal.signal(number, signal.SIG_IGN)
        stopping.set()
        pool.shutdown(wait=True, cancel_futures=True)
        with running_lock:
            left_over = list(running)
        for proc in left_over:
            proc.kill()
            proc.wait()
        if o.keep:
            print('data and logs are in %s' % scratch)
        else:
            shutil.rmtree(scratch, ignore_errors=True)

    rows, total = table(results, complete)
    for path, n in collections.Counter(message for _, result, message in results if result == 'left').most_common():
        print('left %4d: %s' % (n, path))
    print('%d cases in %.0f s' % (len(results), time.monotonic() - started))
    if o.json:
        out = [{'id': c['id'], 'result': r, 'message': m} for c, r, m in sorted(results, key=lambda x: x[0]['id'])]
        pathlib.Path(o.json).write_text(json.dumps(out, indent=1) + '\n')
    broken = [s for s in complete if s in rows and rows[s]['passed'] != sum(rows[s].values())]
    for suite in broken:
        print('%s is not complete any more' % suite)
    return 1 if total['failed'] or broken else 0


if __name__ == '__main__':
    sys.exit(main())

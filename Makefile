# Needs python3 (3.10 or newer, with venv), make and a package registry. Everything goes into .venv and build/, which
# git ignores; `make clean` removes both. Another interpreter: `make test PYTHON=python3.12`.

PYTHON ?= python3
PYTEST_ARGS ?=
# Most tests wait for a server most of the time: two cores are busy with four at once.
WORKERS ?= 4
CLIENTS := build/clients
TOOLS := prometheus nginx caddy
# With what it needs beyond a bare Debian, by Debian's names; where these are others, it is tested only if installed.
HAPROXY := haproxy liblua5.3-0 libopentracing-c-wrapper0 libopentracing1
SYSTEMD := systemd libsystemd-shared
CHAOS ?= 200
CHAOS_REAL ?= 20
POWER ?= 20
POWER_REAL ?= 20
POWER_JOBS ?= 100
CHANNELS ?= 500
CHANNELS_REAL ?= 20
FLEET ?= 1200
BOXES ?= 3
LEDGER ?= 500
LEDGER_KILLS ?= 20
SOAK ?= --minutes 20 --jobs 2000
CROWD ?= --sockets 500 --submitters 200 --seconds 60
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input install --quiet
# mypy and import-linter want the package under one fixed name, whatever this checkout is called.
ALIAS := build/alias

# This folder on sys.path would make our nodes/ and app.py shadow ComfyUI's.
unexport PYTHONPATH
unexport PYTHONHOME
# Python compiles the tests once then, and not for each of the two runs and five processes.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo pictures serve test check site clients chaos power channels fleet fleet-chaos ledger soak crowd
.PHONY: gpu format venv clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    a tour on real photos: one line per job, exit 0 if every outcome was the expected one"
	@echo "make serve   the same server, kept running"
	@echo "make test    the whole gate: check, then pytest (PYTEST_ARGS='-k name' to choose, WORKERS=4)"
	@echo "make check   format, lint, types, who may import whom, the documentation's links"
	@echo "make site    the documentation as a site, in build/site"
	@echo "make clients published clients of ComfyUI, unchanged, also on every real ComfyUI that is found"
	@echo "make chaos   200 rounds of SIGKILL under load, and 20 on a real ComfyUI where one is found (CHAOS_REAL)"
	@echo "make power   20 power cuts of 100 jobs each on disks that forget what was not synced (POWER, POWER_REAL,"
	@echo "             POWER_JOBS); as root also on a file system of its own"
	@echo "make channels 500 schedules of full disks, silent stores, stops and kills, with a listener on every channel, and"
	@echo "             20 on each real ComfyUI (CHANNELS, CHANNELS_REAL)"
	@echo "make fleet   a tour of three servers that share a queue: one is killed, one frozen, their PostgreSQL and S3 killed;"
	@echo "             one line per step, exit 0 if every outcome was the expected one (BOXES)"
	@echo "make fleet-chaos 20 minutes of servers that share a queue, killed, frozen, cut off and with wrong clocks, their"
	@echo "             PostgreSQL, depot and bot killed too (FLEET, seconds)"
	@echo "make ledger  500 photos for the example bot, it and the server killed 20 times each (LEDGER, LEDGER_KILLS)"
	@echo "make soak    20 minutes of mixed load with faults (SOAK='--minutes 20 --jobs 2000'); fails where memory,"
	@echo "             open files or threads grow"
	@echo "make gpu     out of memory, a device-side assert, endless kernels, a stopped sampler and full queues on a ComfyUI"
	@echo "             with a GPU (COMFYUI_PATH, COMFYUI_PYTHON), in 8 minutes at most"
	@echo "make crowd   500 sockets and 200 submitters for a minute (CROWD='… --real' on a ComfyUI); fails where anything is"
	@echo "             answered 5xx, a socket is lost or memory stays"
	@echo "make format  ruff's fixes and format"
	@echo "make pictures the pictures in docs/, made anew with Chromium; that of the editor where a ComfyUI is found"
	@echo "make clean   remove .venv and build"
	@echo "The browser tests want Chromium: apt-get install chromium, or $(BIN)/python -m playwright install chromium"
	@echo "COMFYUI_PATH=<folder> runs demo, serve and the contract tests on that ComfyUI"

demo: $(VENV)/.run-ready
	$(BIN)/python demo/tour.py

serve: $(VENV)/.run-ready
	$(BIN)/python demo/tour.py --serve

# The pictures in docs/, made anew; they need Chromium, and that of the editor a ComfyUI.
pictures: $(VENV)/.run-ready $(VENV)/.dev-ready
	$(BIN)/python demo/pictures.py

# First what can run side by side, then, each by itself, what measures time or the machine. 2 is Ctrl-C; 5 is that
# PYTEST_ARGS has chosen none there.
test: check $(VENV)/.run-ready $(VENV)/.tools-ready $(CLIENTS)/.ready
	@chosen() { echo "pytest tests $$*"; $(BIN)/pytest tests "$$@" $(PYTEST_ARGS); }; \
	chosen --serial without --numprocesses $(WORKERS); beside=$$?; \
	[ $$beside -ne 2 ] || exit 2; \
	chosen --serial only; alone=$$?; \
	case $$beside,$$alone in 0,0 | 0,5 | 5,0) ;; *) exit 1 ;; esac

# A link or an anchor that leads nowhere fails it; with --quiet none would. The variable silences an advertisement.
site: $(VENV)/.dev-ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

check: $(VENV)/.dev-ready $(ALIAS)/comfyui_guarded site
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	cd $(ALIAS) && ../../$(BIN)/mypy --config-file ../../pyproject.toml
	PYTHONPATH=$(ALIAS) $(BIN)/lint-imports --no-logo --cache-dir build/import_linter_cache

clients: $(VENV)/.run-ready $(VENV)/.dev-ready $(CLIENTS)/.ready
	GUARDED_CLIENTS=everywhere $(BIN)/pytest tests/clients $(PYTEST_ARGS)

chaos: $(VENV)/.run-ready $(VENV)/.dev-ready
	GUARDED_CHAOS=$(CHAOS) GUARDED_CHAOS_REAL=$(CHAOS_REAL) $(BIN)/pytest tests/chaos/test_rounds.py $(PYTEST_ARGS)

power: $(VENV)/.run-ready $(VENV)/.dev-ready
	GUARDED_POWER=$(POWER) GUARDED_POWER_REAL=$(POWER_REAL) GUARDED_POWER_JOBS=$(POWER_JOBS) \
		$(BIN)/pytest tests/chaos/test_power_cut.py $(PYTEST_ARGS)

channels: $(VENV)/.run-ready $(VENV)/.dev-ready
	GUARDED_CHANNELS=$(CHANNELS) GUARDED_CHANNELS_REAL=$(CHANNELS_REAL) $(BIN)/pytest tests/chaos/test_channels.py $(PYTEST_ARGS)

fleet: $(VENV)/.run-ready $(VENV)/.dev-ready
	$(BIN)/python demo/fleet.py --boxes $(BOXES)

fleet-chaos: $(VENV)/.run-ready $(VENV)/.dev-ready
	GUARDED_FLEET_CHAOS_S=$(FLEET) $(BIN)/pytest tests/fleet $(PYTEST_ARGS)

ledger: $(VENV)/.run-ready $(VENV)/.dev-ready
	GUARDED_LEDGER=$(LEDGER) GUARDED_LEDGER_KILLS=$(LEDGER_KILLS) $(BIN)/pytest tests/examples/test_ledger.py $(PYTEST_ARGS)

soak: $(VENV)/.run-ready $(VENV)/.dev-ready
	$(BIN)/python tests/chaos/soak.py $(SOAK)

crowd: $(VENV)/.run-ready $(VENV)/.dev-ready
	$(BIN)/python tests/chaos/crowd.py $(CROWD)

gpu: $(VENV)/.run-ready $(VENV)/.dev-ready
	GUARDED_GPU=1 $(BIN)/pytest tests/gpu --session-timeout 480 $(PYTEST_ARGS)

format: $(VENV)/.dev-ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

venv: $(VENV)/.run-ready $(VENV)/.dev-ready

clean:
	rm -rf $(VENV) build

# Once each, and again when their list changes.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed; this is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "No venv could be made. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(PIP) --upgrade pip # the one that comes with Python 3.10 searches for minutes before it finds what fits together
	@touch $@

$(VENV)/.run-ready: $(VENV)/.created requirements.txt requirements-demo.txt
	@echo "Installing what the server and the tour need into $(VENV), once ..."
	@$(PIP) -r requirements.txt
	@$(BIN)/python -c "import onnxruntime" 2>/dev/null || $(PIP) onnxruntime # the stand-in for ComfyUI has no torch
	@rm -rf $(VENV)/photos
	@$(PIP) --no-deps --only-binary :all: --target $(VENV)/photos -r requirements-demo.txt
	@touch $@

# insightface as its requirements file says, so that its real loading path is tested and onnxruntime stays what it was.
$(VENV)/.dev-ready: $(VENV)/.created requirements.txt requirements-dev.txt requirements-insightface.txt
	@echo "Installing what the gate needs into $(VENV), once ..."
	@$(PIP) -r requirements.txt -r requirements-dev.txt -r requirements-insightface.txt
	@$(PIP) --no-deps "insightface>=1.0.1"
	@$(BIN)/python -c "import onnxruntime" 2>/dev/null || $(PIP) onnxruntime
	@touch $@

# What no package of PyPI has: Prometheus, and the proxies of the deployment manual. Nothing is
# installed outside of here, and without apt-get the tests that want them are skipped.
$(VENV)/.tools-ready: $(VENV)/.created
	@mkdir -p $(VENV)/tools
	@cd $(VENV)/tools && { apt-get download $(TOOLS) || { apt-get update && apt-get download $(TOOLS); } && \
		{ apt-get download $(HAPROXY) || rm -f haproxy_*.deb; } && \
		{ apt-get download $(SYSTEMD) || rm -f systemd_*.deb; } && \
		for package in *.deb; do dpkg-deb -x $$package . || exit 1; done && \
		rm -f *.deb; } >/dev/null 2>&1 || \
		echo "No $(TOOLS) could be had from apt-get; their tests will be skipped."
	@touch $@

# Clients from PyPI and npm, in an environment of their own: what they pin is not what the server runs on. Without npm,
# those from PyPI are tested all the same.
$(CLIENTS)/.ready: tests/clients/requirements.txt tests/clients/requirements-needed.txt tests/clients/package.json
	@echo "Installing published clients of ComfyUI into $(CLIENTS), once ..."
	@$(PYTHON) -m venv $(CLIENTS)
	@$(CLIENTS)/bin/python -m pip --disable-pip-version-check --no-input install --quiet \
		-r tests/clients/requirements-needed.txt
	@$(CLIENTS)/bin/python -m pip --disable-pip-version-check --no-input install --quiet --no-deps \
		-r tests/clients/requirements.txt
	@cp tests/clients/package.json $(CLIENTS)/
	@npm install --prefix $(CLIENTS) --no-audit --no-fund --silent || \
		echo "npm could not install its clients: published ones will be skipped, tests of generators will fail."
	@touch $@

$(ALIAS)/comfyui_guarded:
	@mkdir -p $(ALIAS)
	@ln -sfn ../.. $@

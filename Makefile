.PHONY: conformance

# The whole conformance corpus; pass options with ARGS, e.g. ARGS="--suite 'api-*' -v".
conformance:
	cargo build -p ikada-cp -p ikada-tests
	python3 tests/conformance.py $(ARGS)

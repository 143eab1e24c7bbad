# Recipes for a board, thin over the command line. In a product's own Makefile (docs/product has a whole example):
#   include $(shell tinkit --makefile)
#   make jetson HOST=user@orin
# or without one: make -f "$(tinkit --makefile)" jetson HOST=user@orin
#
#   HOST         user@board, a name of your ssh configuration, or local (the same way without ssh)
#   TARGET       export target of `make jetson`        TARGETS, MODES   of `make jetson-matrix`
#   RUN          the run to export, the newest finished one when empty
#   BUDGET       limits such as p95_ms<5               JETSON_FLAGS     more flags of `tinkit profile`, as shell words
#   SSH_CONFIG   a file for ssh -F                     BOARD_PYTHON     the board's interpreter
#   RESTORE=1    with `make jetson-clocks`: put clocks and mode back

jetson_goal := $(.DEFAULT_GOAL)
TINKIT ?= tinkit
TARGET ?= trt-fp16
TARGETS ?= $(TARGET)
MODES ?=
RUN ?=
BUDGET ?=
SSH_CONFIG ?=
BOARD_PYTHON ?=
JETSON_FLAGS ?=
RESTORE ?=
ifneq ($(filter environment,$(origin HOST)),) # some shells export the name of this machine under this name
HOST :=
endif

# Values travel in the environment, quoted, so that no name of a host or folder becomes a word of the shell; and what was
# said on the command line or in the environment is no word of make either: $(...) in it stays text.
jetson_values := HOST TARGET TARGETS MODES RUN BUDGET SSH_CONFIG BOARD_PYTHON
$(foreach name,$(jetson_values),$(if $(filter command environment,$(firstword $(origin $(name)))),\
  $(eval $(if $(filter command override,$(origin $(name))),override) $(name) := $$(value $(name)))))
export $(jetson_values)

reach_board = --host="$$HOST" $(if $(SSH_CONFIG),--ssh-config="$$SSH_CONFIG") $(if $(BOARD_PYTHON),--python="$$BOARD_PYTHON")
run_of = $(if $(RUN),-- "$$RUN")
bundle_of = $(if $(RUN),-- "$$RUN/bundle-$$(basename -- "$$TARGET" .toml)")

.PHONY: jetson jetson-doctor jetson-clocks jetson-matrix jetson-host

jetson: jetson-host ## from a run to a report measured on the board: HOST=user@orin [TARGET= RUN= BUDGET=]
	$(TINKIT) export --target="$$TARGET" $(run_of)
	$(TINKIT) profile $(reach_board) $(if $(BUDGET),--budget="$$BUDGET") $(JETSON_FLAGS) $(bundle_of)

jetson-doctor: jetson-host ## what the board is and has, and where it and its profile disagree: HOST=
	$(TINKIT) doctor $(reach_board)

jetson-clocks: jetson-host ## changes the board: pins its clocks by sudo -n (RESTORE=1 puts them back): HOST=
	$(TINKIT) clocks $(reach_board) --allow-state-change $(if $(filter-out 0 no,$(RESTORE)),--restore)

jetson-matrix: jetson-host ## changes the board: every target in every power mode, put back afterwards: HOST= TARGETS= MODES=
	set -f; $(TINKIT) matrix $(reach_board) $(if $(MODES),--allow-state-change) $(if $(BUDGET),--budget="$$BUDGET") \
	  $$(for one in $$TARGETS; do printf '%s\n' "--target=$$one"; done) \
	  $$(for one in $$MODES; do printf '%s\n' "--mode=$$one"; done) $(run_of)

jetson-host:
	@test -n "$$HOST" || { echo "Which board? add HOST=user@board, or HOST=local" >&2; exit 1; }

# `make` alone stays the product's own first target.
.DEFAULT_GOAL := $(jetson_goal)

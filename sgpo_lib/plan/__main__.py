"""`python -m sgpo_lib.plan PARAMS`: print the plan of a run."""

from sgpo_lib.plan.report import main

if __name__ == "__main__":
    main()

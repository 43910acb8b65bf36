"""What a run will need before it costs anything: tokens, operations, hours, memory, money.

    python -m sgpo_lib.plan params/llama3-8b-lora.yaml --gpu H100-80GB --n-gpus 8

This room knows shapes of models and rates of machines. It loads no weights and runs nothing.
"""

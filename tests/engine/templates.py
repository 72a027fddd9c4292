"""Chat templates of every temper: with a tool format and without, strict and silent."""

IMAGE = "<img><IMG_CONTEXT></img>"
PARTS = (
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{% if part.type == 'image' %}" + IMAGE + "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
)
TURN = "<|im_start|>{{ m.role }}\n" + PARTS + "{{ extra }}<|im_end|>\n"
END = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
LOOP = "{% for m in messages %}"
HERMES = (
    "{% if tools %}<|im_start|>system\nTools:{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n"
    "Call one with <tool_call></tool_call>.<|im_end|>\n{% endif %}"
    + LOOP
    + "{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n"
    + PARTS
    + "\n</tool_response><|im_end|>\n{% else %}<|im_start|>{{ m.role }}\n"
    + PARTS
    + "{% if m.tool_calls %}{% for call in m.tool_calls %}\n<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}{% endif %}<|im_end|>\n{% endif %}{% endfor %}" + END
)
TEMPLATES = {
    "any role": LOOP + TURN + "{% endfor %}" + END,
    "its own tool format": HERMES,
    "user and assistant take turns": (
        LOOP
        + "{% if m.role not in ['user', 'assistant'] or (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        + "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
        + TURN
        + "{% endfor %}"
        + END
    ),
    "leaves unknown roles out": LOOP
    + "{% if m.role in ['user', 'assistant'] %}"
    + TURN
    + "{% endif %}{% endfor %}"
    + END,
    "leaves tools' turns out": LOOP + "{% if m.role != 'tool' %}" + TURN + "{% endif %}{% endfor %}" + END,
    "leaves calls out, knows them": LOOP + "{% set unused = m.tool_calls %}" + TURN + "{% endfor %}" + END,
    "results as JSON": LOOP
    + "{% if m.role == 'tool' %}{{ m.content[0].text | tojson }}{% else %}"
    + TURN
    + "{% endif %}{% endfor %}"
    + END,
    "adds strings": LOOP
    + "<|im_start|>{% if m.content is string %}{{ m.role + '\n' + m.content }}{% elif m.role != 'user' %}"
    "{{ m.role + m.content }}{% else %}user\n" + PARTS + "{% endif %}<|im_end|>\n{% endfor %}" + END,
    "prints lists": LOOP
    + "<|im_start|>{% if m.role != 'user' %}{{ m.role }}\n{{ m.content }}{% else %}user\n"
    + PARTS
    + "{% endif %}<|im_end|>\n{% endfor %}"
    + END,
    "tools in another format": "{% if tools %}<|tools|>{{ tools | tojson }}{% endif %}"
    + LOOP
    + TURN
    + "{% endfor %}"
    + END,
}

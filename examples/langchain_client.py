"""LangChain's ChatOpenAI turns a knob of `alignvec serve`.

    pip install langchain-openai
    alignvec serve embedded --vector medical=medical-av
    python examples/langchain_client.py [URL] [KNOB]

The key is read from OPENAI_API_KEY, if the server asks for one.
"""

import os
import sys

from langchain_openai import ChatOpenAI

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
knob = sys.argv[2] if len(sys.argv) > 2 else "medical"
question = "Is it safe to take ibuprofen every day for back pain?"

model = ChatOpenAI(
    model="embedded",
    base_url=url,
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
    max_tokens=60,
    temperature=0,
)
careful = model.bind(extra_body={"knobs": {knob: -1}})
expert = model.bind(extra_body={"knobs": {knob: 1}})

# One model, one knob, two chains: they may run at the same time and share their forward passes.
print(careful.invoke(question).content, end="\n\n")
for chunk in expert.stream(question):
    print(chunk.text, end="", flush=True)
print("\n")
for answer in model.bind(extra_body={"knobs": {knob: 0.5}}).batch([question, "And with coffee?"]):
    print(answer.content, end="\n\n")

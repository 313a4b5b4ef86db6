"""The official `openai` client turns a knob of `alignvec serve`.

    alignvec serve embedded --vector medical=medical-av
    python examples/openai_client.py [URL] [KNOB]

The key is read from OPENAI_API_KEY, if the server asks for one.
"""

import os
import sys

from openai import BadRequestError, OpenAI

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
knob = sys.argv[2] if len(sys.argv) > 2 else "medical"
client = OpenAI(base_url=url, api_key=os.environ.get("OPENAI_API_KEY", "none"))
(model,) = (one.id for one in client.models.list())
question = {"role": "user", "content": "Is it safe to take ibuprofen every day for back pain?"}

# A request says how far each knob is turned; the response, with what it was answered.
for strength in (-1, 0, 1):
    answer = client.chat.completions.create(
        model=model,
        messages=[question],
        max_tokens=60,
        temperature=0,
        extra_body={"knobs": {knob: strength}},
    )
    print(answer.alignvec["knobs"], answer.choices[0].message.content, sep="\n", end="\n\n")

# A client that can send no field of its own says it in the name of the model.
stream = client.chat.completions.create(
    model=f"{model}:{knob}=0.5", messages=[question], max_tokens=60, temperature=0, stream=True
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print("\n")

# What the server does not know it refuses, and says what it knows.
try:
    client.chat.completions.create(
        model=model, messages=[question], extra_body={"knobs": {"astrology": 1}}
    )
except BadRequestError as refused:
    print(f"{refused.code}: {refused.body['message']}")

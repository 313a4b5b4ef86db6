"""Knobs on vLLM: a plugin for stock releases, found by its entry points.

All knobs lie side by side in one low-rank adapter of vLLM's own (`bank`), which every request that
turns a knob names, with its setting (`request`). Between the two products of that adapter each
column is multiplied by a factor of its token (`gate`); that is all of y = W x + sum_k lambda_k B_k
(A_k x), sharded, packed and captured in graphs by vLLM as any adapter is.

`plugin` puts it in place in every process; `endpoints` is the HTTP side.
"""

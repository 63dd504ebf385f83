# SPDX-License-Identifier: Apache-2.0
"""Servers that answer as vLLM and SGLang do, without a model: what the controller's tests drive."""

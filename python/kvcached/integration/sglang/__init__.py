# SPDX-License-Identifier: Apache-2.0
"""SGLang: `interfaces` for integrations of one's own."""

//go:build programs

// Package programs names what is built here, so that go.mod keeps what it needs.
package programs

import _ "github.com/rhysd/actionlint/cmd/actionlint"

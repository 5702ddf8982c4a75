// Package errors is a stub with the only error type that flannel uses.
package errors

// TencentCloudSDKError is an API error. The stubs never return one.
type TencentCloudSDKError struct{ Message string }

// Error returns the message.
func (e *TencentCloudSDKError) Error() string { return e.Message }

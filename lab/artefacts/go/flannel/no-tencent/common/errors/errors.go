// Package errors holds the one error type that flannel asks for.
package errors

// TencentCloudSDKError is an error of the cloud; nothing here ever makes one.
type TencentCloudSDKError struct{ Message string }

// Error gives the message.
func (e *TencentCloudSDKError) Error() string { return e.Message }
